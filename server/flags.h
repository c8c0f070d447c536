// Command line flags as a table: one row gives the name, the default, the help and the setter, so
// that
// --help and what the parser does cannot drift apart. Used by denoised and denoisectl.
#ifndef DENOISED_SERVER_FLAGS_H_
#define DENOISED_SERVER_FLAGS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace denoised {

enum class CpuIsa : uint8_t;
enum class LinearNumerics : uint8_t;

// Wrong use of the command line: the program prints the message and exits with 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Flag {
  std::string name;           // without dashes, words joined by '_'
  std::string value;          // what --help calls its value ("HOST:PORT"); "" = a switch
  std::string default_value;  // as --help shows it; "" = none
  std::string help;           // one or two sentences, with the range; "" = not shown
  std::function<void(const std::string&)> set;  // throws UsageError
  std::string short_name = "";                  // "o" for -o
  bool repeatable = false;
};

// Ready-made setters. They throw UsageError naming the flag, its range and what came.
std::function<void(const std::string&)> SetString(std::string* target);
std::function<void(const std::string&)> SetBool(const std::string& name, bool* target);
std::function<void(const std::string&)> SetInt(const std::string& name, int64_t min, int64_t max,
                                               std::function<void(int64_t)> set);
// A word that becomes a part of file names: at most 32 letters, digits, '_' and '-'.
std::function<void(const std::string&)> SetWord(const std::string& name, std::string* target);
std::function<void(const std::string&)> SetDouble(const std::string& name, double min, double max,
                                                  std::function<void(double)> set);
std::function<void(const std::string&)> SetChoice(const std::string& name,
                                                  std::vector<std::string> choices,
                                                  std::string* target);
// auto, cpu or cuda:N.
std::function<void(const std::string&)> SetDevice(const std::string& name, std::string* target);

// "500ms", "30s", "5m", "1h", at most ten years; throws UsageError naming `name`.
std::chrono::milliseconds ParseDuration(const std::string& name, const std::string& text);
// The same, and longer than 0.
std::chrono::milliseconds ParsePositiveDuration(const std::string& name, const std::string& text);

// What somebody who typed `name` may have meant: the known name that is a slip of the finger away,
// or that is a part of it or begins with it ("num_frames" and "fra" mean "frames"); "" where none
// is.
std::string Nearest(const std::string& name, const std::vector<std::string>& known);

// Applies --name=value, --name value, --switch, -x value and -xvalue; '-' and '_' are the same in
// names. Returns the other arguments in order. Those that no flag could be spelled like are among
// them: "-", "-5 degrees", "- a list". After "--" come arguments only, `max_rest` in all; flags may
// follow those, since nothing else could. Throws UsageError for an unknown flag (with the nearest
// known name), a missing value, or a flag given twice.
std::vector<std::string> ParseFlags(const std::vector<Flag>& flags,
                                    const std::vector<std::string>& arguments,
                                    size_t max_rest = SIZE_MAX);

// --cpu_isa, which the server and the commands that compute have.
Flag CpuIsaFlag(CpuIsa* target);

// PinCpuIsa for a value of that flag: UsageError where the machine lacks the level.
void PinFromFlag(CpuIsa isa);
// --max_memory, which the server and `denoisectl run` have.
Flag MaxMemoryFlag(std::string* target);

// --linear of the server.
Flag LinearFlag(std::optional<LinearNumerics>* target);
// What it, and the flag of a request, may be.
std::vector<std::string> LinearChoices();

// --vae_dtype, likewise.
Flag VaeDtypeFlag(std::string* target);

// --keep_text_encoder, likewise.
Flag KeepTextEncoderFlag(std::string* target);

// The table as text, wrapped at 100 columns.
std::string FlagsHelp(const std::vector<Flag>& flags);

}  // namespace denoised

#endif  // DENOISED_SERVER_FLAGS_H_
