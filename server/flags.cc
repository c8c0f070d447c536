#include "server/flags.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>

#include "backends/cpu_isa.h"

namespace denoised {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kHelpIndent = 6;

std::string Normalised(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string Hint(const std::vector<Flag>& flags, const std::string& name) {
  std::string best;
  size_t smallest = 4;
  for (const Flag& flag : flags) {
    const size_t distance = EditDistance(name, flag.name);
    if (distance < smallest) {
      smallest = distance;
      best = flag.name;
    }
  }
  return best.empty() ? "; see --help" : "; did you mean --" + best + "?";
}

const Flag& FindFlag(const std::vector<Flag>& flags, const std::string& name, bool is_short) {
  for (const Flag& flag : flags) {
    if ((is_short ? flag.short_name : flag.name) == name) return flag;
  }
  throw UsageError("unknown flag " + std::string(is_short ? "-" : "--") + name + Hint(flags, name));
}

bool LooksLikeFlag(const std::string& argument) {
  return argument.size() > 1 && argument[0] == '-';
}

// Position over the arguments while they are read.
class Reader {
 public:
  Reader(const std::vector<Flag>& flags, const std::vector<std::string>& arguments)
      : flags_(flags), arguments_(arguments) {}

  std::vector<std::string> Run() {
    std::vector<std::string> rest;
    for (; index_ < arguments_.size(); ++index_) {
      const std::string& argument = arguments_[index_];
      if (argument == "--") {
        rest.insert(rest.end(), arguments_.begin() + static_cast<int64_t>(index_) + 1,
                    arguments_.end());
        break;
      }
      if (LooksLikeFlag(argument)) {
        ReadFlag(argument);
      } else {
        rest.push_back(argument);
      }
    }
    return rest;
  }

 private:
  void ReadFlag(const std::string& argument) {
    const bool is_short = argument[1] != '-';
    const std::string text = argument.substr(is_short ? 1 : 2);
    const size_t equals = text.find('=');
    const std::string name = Normalised(text.substr(0, equals));
    const Flag& flag = FindFlag(flags_, name, is_short);
    if (!seen_.insert(flag.name).second && flag.value != "KEY=VALUE") {
      throw UsageError("--" + flag.name + " is given twice");
    }
    if (equals != std::string::npos) {
      flag.set(text.substr(equals + 1));
    } else if (flag.value.empty()) {
      flag.set("true");
    } else if (index_ + 1 < arguments_.size()) {
      flag.set(arguments_[++index_]);
    } else {
      throw UsageError("--" + flag.name + " needs a value: --" + flag.name + "=" + flag.value);
    }
  }

  const std::vector<Flag>& flags_;
  const std::vector<std::string>& arguments_;
  size_t index_ = 0;
  std::set<std::string> seen_;
};

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

std::function<void(const std::string&)> SetDouble(const std::string& name,
                                                  std::function<void(double)> set) {
  return [=](const std::string& text) {
    double number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    if (text.empty() || stop != end || error != std::errc() || !std::isfinite(number)) {
      throw UsageError("--" + name + " is a number, got '" + text + "'");
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

std::chrono::milliseconds ParseDuration(const std::string& name, const std::string& text) {
  struct Unit {
    std::string_view suffix;
    double milliseconds;
  };
  // "ms" before "m" and "s": the first suffix that fits wins.
  constexpr std::array<Unit, 5> kUnits = {
      {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}, {"d", 86400e3}}};
  constexpr double kTenYearsMs = 10 * 366 * 86400e3;
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  const std::string_view suffix(stop, static_cast<size_t>(end - stop));
  for (const Unit& unit : kUnits) {
    const double ms = number * unit.milliseconds;
    if (error == std::errc() && suffix == unit.suffix && ms >= 0 && ms <= kTenYearsMs) {
      return std::chrono::milliseconds(static_cast<int64_t>(ms));
    }
  }
  throw UsageError("--" + name + " is a time such as 500ms, 30s, 5m or 1h, got '" + text + "'");
}

std::vector<std::string> ParseFlags(const std::vector<Flag>& flags,
                                    const std::vector<std::string>& arguments) {
  return Reader(flags, arguments).Run();
}

Flag CpuIsaFlag(CpuIsa* target) {
  return {
      "cpu_isa", "LEVEL", "auto",
      "auto, avx2, avx512, avx512_vnni, avx512_bf16 or amx: the widest CPU instructions that our "
      "kernels, LibTorch's, oneDNN's and MKL's may use; never above the machine's. auto is the "
      "machine's widest.",
      [target](const std::string& text) {
        std::string name;
        SetChoice("cpu_isa", CpuIsaNames(), &name)(text);
        *target = *CpuIsaFromName(name);
      }};
}

std::string FlagsHelp(const std::vector<Flag>& flags) {
  std::string out;
  for (const Flag& flag : flags) {
    out += flag.short_name.empty() ? "  " : "  -" + flag.short_name + ", ";
    out += "--" + flag.name + (flag.value.empty() ? "" : "=" + flag.value);
    if (!flag.default_value.empty()) out += "  (default " + flag.default_value + ")";
    out += "\n" + Wrapped(flag.help);
  }
  return out;
}

}  // namespace denoised
