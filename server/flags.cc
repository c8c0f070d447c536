#include "server/flags.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <optional>
#include <set>
#include <sstream>

#include "backends/cpu_isa.h"
#include "backends/error.h"
#include "runtime/engine/memory_budget.h"
#include "runtime/numerics.h"

namespace denoised {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kHelpIndent = 6;

std::string Normalised(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

// Edits between two words: insert, delete, replace, swap neighbours.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] =
          std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// `part` is a word of `name`, or a run of words, or `name` is the beginning of it.
bool IsPart(const std::string& part, const std::string& name) {
  return ("_" + name + "_").find("_" + part + "_") != std::string::npos ||
         (name.size() >= 3 && part.starts_with(name));
}

std::string Hint(const std::vector<Flag>& flags, const std::string& name) {
  std::vector<std::string> names;
  for (const Flag& flag : flags) {
    if (!flag.help.empty()) names.push_back(flag.name);
  }
  const std::string best = Nearest(name, names);
  return best.empty() ? "; see --help" : "; did you mean --" + best + "?";
}

const Flag* FindFlag(const std::vector<Flag>& flags, const std::string& name, bool is_short) {
  for (const Flag& flag : flags) {
    if ((is_short ? flag.short_name : flag.name) == name) return &flag;
  }
  return nullptr;
}

// "-x" or "--name", perhaps with "=value": a letter after the dashes, no blank before the '='.
bool LooksLikeFlag(const std::string& argument) {
  const size_t dashes = argument.starts_with("--") ? 2 : argument.starts_with("-") ? 1 : 0;
  if (dashes == 0 || argument.size() == dashes) return false;
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return letter(argument[dashes]) &&
         argument.substr(0, argument.find('=')).find_first_of(" \t\n") == std::string::npos;
}

// Position over the arguments while they are read.
class Reader {
 public:
  Reader(const std::vector<Flag>& flags, const std::vector<std::string>& arguments, size_t max_rest)
      : flags_(flags), arguments_(arguments), max_rest_(max_rest) {}

  std::vector<std::string> Run() {
    for (; index_ < arguments_.size(); ++index_) {
      const std::string& argument = arguments_[index_];
      if (argument == "--" && !seen_dashes_) {
        seen_dashes_ = true;
      } else if (!(seen_dashes_ && rest_.size() < max_rest_) && LooksLikeFlag(argument)) {
        ReadFlag(argument);
      } else {
        if (!seen_dashes_) RefuseFlagWithValue(argument);
        rest_.push_back(argument);
      }
    }
    return std::move(rest_);
  }

 private:
  // "-o a.mp4" or "--steps 5", quoted into one argument.
  void RefuseFlagWithValue(const std::string& argument) const {
    const std::string word = argument.substr(0, argument.find_first_of(" \t\n"));
    if (word.size() < argument.size() && LooksLikeFlag(word) && Find(word)) {
      throw UsageError("'" + argument + "' is one argument; the flag " + word +
                       " and its value are two (and text that begins like that goes after --)");
    }
  }

  const Flag* Find(const std::string& argument) const {
    const bool is_short = argument[1] != '-';
    const std::string text = argument.substr(is_short ? 1 : 2);
    return FindFlag(flags_, Normalised(text.substr(0, text.find('='))), is_short);
  }

  void ReadFlag(const std::string& argument) {
    const bool is_short = argument[1] != '-';
    const std::string text = argument.substr(is_short ? 1 : 2);
    const size_t equals = text.find('=');
    const std::string name = Normalised(text.substr(0, equals));
    const Flag* flag = FindFlag(flags_, name, is_short);
    if (flag != nullptr) {
      const bool has_value = equals != std::string::npos;
      return Apply(*flag, has_value ? std::optional(text.substr(equals + 1)) : std::nullopt);
    }
    // -oFILE, but not a long name with one dash.
    const Flag* attached = is_short ? FindFlag(flags_, text.substr(0, 1), true) : nullptr;
    if (attached != nullptr && !attached->value.empty() && !FindFlag(flags_, name, false)) {
      return Apply(*attached, text.substr(1));
    }
    throw UsageError("unknown flag " + argument.substr(0, argument.find('=')) + Hint(flags_, name));
  }

  void Apply(const Flag& flag, const std::optional<std::string>& value) {
    if (!seen_.insert(flag.name).second && !flag.repeatable) {
      throw UsageError("--" + flag.name + " is given twice");
    }
    if (value) {
      flag.set(*value);
    } else if (flag.value.empty()) {
      flag.set("true");
    } else {
      flag.set(NextAsValue(flag));
    }
  }

  const std::string& NextAsValue(const Flag& flag) {
    const bool there = index_ + 1 < arguments_.size() && arguments_[index_ + 1] != "--";
    if (!there || (LooksLikeFlag(arguments_[index_ + 1]) && Find(arguments_[index_ + 1]))) {
      throw UsageError("--" + flag.name + " needs a value: --" + flag.name + "=" + flag.value);
    }
    return arguments_[++index_];
  }

  const std::vector<Flag>& flags_;
  const std::vector<std::string>& arguments_;
  const size_t max_rest_;
  size_t index_ = 0;
  bool seen_dashes_ = false;
  std::vector<std::string> rest_;
  std::set<std::string> seen_;
};

// Shortest text that reads back as `number`.
std::string Shortest(double number) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
}

std::string Wrapped(const std::string& text) {
  std::istringstream words(text);
  std::string out, line(kHelpIndent, ' ');
  for (std::string word; words >> word;) {
    if (line.size() + word.size() > kWidth) {
      out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
      line.assign(kHelpIndent, ' ');
    }
    line += word + " ";
  }
  return out + line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
}

}  // namespace

std::function<void(const std::string&)> SetString(std::string* target) {
  return [target](const std::string& text) { *target = text; };
}

std::function<void(const std::string&)> SetBool(const std::string& name, bool* target) {
  return [name, target](const std::string& text) {
    if (text != "true" && text != "false") {
      throw UsageError("--" + name + " is true or false, got '" + text + "'");
    }
    *target = text == "true";
  };
}

std::function<void(const std::string&)> SetInt(const std::string& name, int64_t min, int64_t max,
                                               std::function<void(int64_t)> set) {
  return [=](const std::string& text) {
    int64_t number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    if (text.empty() || stop != end || error != std::errc() || number < min || number > max) {
      throw UsageError("--" + name + " is a whole number from " + std::to_string(min) + " to " +
                       std::to_string(max) + ", got '" + text + "'");
    }
    set(number);
  };
}

std::function<void(const std::string&)> SetWord(const std::string& name, std::string* target) {
  return [=](const std::string& text) {
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
      return c == '_' || c == '-' || std::isalnum(static_cast<unsigned char>(c));
    });
    if (!plain || text.size() > 32) {
      throw UsageError("--" + name + " is at most 32 letters, digits, '_' and '-', got '" + text +
                       "'");
    }
    *target = text;
  };
}

std::function<void(const std::string&)> SetDouble(const std::string& name, double min, double max,
                                                  std::function<void(double)> set) {
  return [=](const std::string& text) {
    double number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    const bool read = !text.empty() && stop == end && error == std::errc();
    if (!read || !(number >= min && number <= max)) {  // false for NaN
      throw UsageError("--" + name + " is a number from " + Shortest(min) + " to " + Shortest(max) +
                       ", got '" + text + "'");
    }
    set(number);
  };
}

std::function<void(const std::string&)> SetChoice(const std::string& name,
                                                  std::vector<std::string> choices,
                                                  std::string* target) {
  return [=](const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      std::string names;
      for (const std::string& choice : choices) names += (names.empty() ? "" : ", ") + choice;
      throw UsageError("--" + name + " is one of " + names + ", got '" + text + "'");
    }
    *target = text;
  };
}

std::function<void(const std::string&)> SetDevice(const std::string& name, std::string* target) {
  return [=](const std::string& text) {
    const bool cuda = text.size() > 5 && text.size() < 9 && text.starts_with("cuda:") &&
                      text.find_first_not_of("0123456789", 5) == std::string::npos;
    if (text != "auto" && text != "cpu" && !cuda) {
      throw UsageError("--" + name + " is auto, cpu or cuda:N (cuda:0 is the first GPU), got '" +
                       text + "'");
    }
    *target = text;
  };
}

std::chrono::milliseconds ParseDuration(const std::string& name, const std::string& text) {
  struct Unit {
    std::string_view suffix;
    double milliseconds;
  };
  constexpr std::array<Unit, 5> kUnits = {
      {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}, {"d", 86400e3}}};
  constexpr double kTenYearsMs = 10 * 366 * 86400e3;
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  const std::string_view suffix(stop, static_cast<size_t>(end - stop));
  for (const Unit& unit : kUnits) {
    if (error != std::errc() || suffix != unit.suffix || !(number >= 0)) continue;
    const double ms = number * unit.milliseconds;
    if (ms <= kTenYearsMs) return std::chrono::milliseconds(static_cast<int64_t>(ms));
    throw UsageError("--" + name + " is at most ten years (3660d), got '" + text + "'");
  }
  throw UsageError("--" + name + " is a time such as 500ms, 30s, 5m or 1h, got '" + text + "'");
}

std::chrono::milliseconds ParsePositiveDuration(const std::string& name, const std::string& text) {
  const auto duration = ParseDuration(name, text);
  if (duration.count() > 0) return duration;
  throw UsageError("--" + name + " is a time of 1ms or longer, got '" + text + "'");
}

std::string Nearest(const std::string& name, const std::vector<std::string>& known) {
  std::string best;
  size_t smallest = std::max<size_t>(2, (name.size() + 1) / 3 + 1);
  if (name.size() < 2) return best;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(name, candidate);
    if (distance >= smallest) continue;
    smallest = distance;
    best = candidate;
  }
  if (!best.empty()) return best;
  for (const std::string& candidate : known) {
    if (IsPart(candidate, name) && candidate.size() > best.size()) best = candidate;
  }
  return best;
}

std::vector<std::string> ParseFlags(const std::vector<Flag>& flags,
                                    const std::vector<std::string>& arguments, size_t max_rest) {
  return Reader(flags, arguments, max_rest).Run();
}

Flag MaxMemoryFlag(std::string* target) {
  return {
      "max_memory", "SIZE", "auto",
      "Memory that this process may take: a size such as 8GiB or 1500MiB, none (or 0), or auto, "
      "which is the smaller of the machine's and its control group's, less a sixteenth (64 MiB "
      "at least). A job or a step that would not fit beside the loaded models, the results and "
      "the waiting requests is refused with RESOURCE_EXHAUSTED. Where requests, results, watchers "
      "and connections take 85 % of what loaded models and running work leave, so is all new work; "
      "from 92 % watchers are sent away, from 95 % new connections are closed.",
      [target](const std::string& text) {
        try {
          const MemoryBudget checked(text);
        } catch (const Error& error) {
          throw UsageError("--" + std::string(error.what()));
        }
        *target = text;
      }};
}

Flag CpuIsaFlag(CpuIsa* target) {
  return {
      "cpu_isa", "LEVEL", "auto",
      "auto, avx2, avx512, avx512_vnni, avx512_bf16 or amx: the widest CPU instructions that our "
      "kernels, LibTorch's, oneDNN's and MKL's may use; never above the machine's. auto is the "
      "machine's fastest.",
      [target](const std::string& text) {
        std::string name;
        SetChoice("cpu_isa", CpuIsaNames(), &name)(text);
        *target = *CpuIsaFromName(name);
      }};
}

void PinFromFlag(CpuIsa isa) {
  try {
    PinCpuIsa(isa);
  } catch (const Error& error) {
    if (error.code() != StatusCode::kInvalidArgument) throw;
    throw UsageError("--" + std::string(error.what()));
  }
}

std::vector<std::string> LinearChoices() {
  std::vector<std::string> names;
  for (const LinearNumerics one : AllLinearNumerics()) names.emplace_back(LinearNumericsName(one));
  return names;
}

Flag LinearFlag(std::optional<LinearNumerics>* target) {
  return {
      "linear", "HOW", "",
      "How linear layers and norms compute on a CPU for jobs that do not say (numerics.linear), "
      "and how weights are kept: packed is our own matrix product, whose results depend on "
      "neither company nor threads; exact has diffusers' bits; int8 is packed with most weights, "
      "and what they multiply, in 8 bits: the fastest and smallest, and coarser, and then jobs get "
      "nothing else. Unset: what a model's denoised.json says, else packed.",
      [target](const std::string& text) {
        std::string name;
        SetChoice("linear", LinearChoices(), &name)(text);
        *target = *LinearNumericsFromName(name);
      }};
}

Flag VaeDtypeFlag(std::string* target) {
  return {"vae_dtype", "DTYPE", "auto",
          "auto, float32 or bfloat16: of the decoder. auto is float32 on a CPU, bfloat16 on CUDA.",
          SetChoice("vae_dtype", {"auto", "float32", "bfloat16"}, target)};
}

Flag KeepTextEncoderFlag(std::string* target) {
  return {
      "keep_text_encoder", "WHEN", "auto",
      "auto, always or never: whether the text encoder's weights stay in memory between two "
      "prompts. Where they go they are read again, and checked, for the next prompt that is not "
      "kept. auto keeps them as long as --max_memory holds a job beside them; on a CUDA device, "
      "whose memory it does not count, always.",
      SetChoice("keep_text_encoder", {"auto", "always", "never"}, target)};
}

std::string FlagsHelp(const std::vector<Flag>& flags) {
  std::string out;
  for (const Flag& flag : flags) {
    if (flag.help.empty()) continue;
    out += flag.short_name.empty() ? "  " : "  -" + flag.short_name + ", ";
    out += "--" + flag.name + (flag.value.empty() ? "" : "=" + flag.value);
    if (!flag.default_value.empty()) out += "  (default " + flag.default_value + ")";
    out += "\n" + Wrapped(flag.help);
  }
  return out;
}

}  // namespace denoised
