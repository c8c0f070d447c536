// A fuzz target without a fuzzer: its seeds, the inputs that are kept, and mutations of them that
// are the same at each run.
//
// What ends it is written to fuzz.input.
//
//   NAME_fuzz [--mutations=N] [--seeds=FOLDER] [FOLDER|FILE...]
//
// --seeds writes the seeds there, for a fuzzer to begin with.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz_target.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

// What stands where a number, a word or a list was.
constexpr const char* kTokens[] = {
    "0",
    "-1",
    "1e999",
    "1e300",
    "-0.0",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "true",
    "null",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "1.5",
    "\"\xff\"",
    "",
};

class Mutator {
 public:
  explicit Mutator(const std::vector<std::string>& seeds) : seeds_(seeds) {}

  std::string Next() {
    std::string bytes = seeds_[Below(seeds_.size())];
    for (size_t change = 1 + Below(3); change > 0; --change) Change(&bytes);
    return bytes;
  }

 private:
  size_t Below(size_t end) { return random_() % end; }
  size_t Place(const std::string& bytes) { return Below(bytes.size() + 1); }

  void Change(std::string* bytes) {
    const size_t at = Place(*bytes);
    switch (Below(8)) {
      case 0:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Below(8)));
        break;
      case 1:
        bytes->resize(at);
        break;
      case 2:
        bytes->insert(at, 1 + Below(9), static_cast<char>(random_()));
        break;
      case 3:
        bytes->erase(at, 1 + Below(20));
        break;
      case 4: {
        const std::string& other = seeds_[Below(seeds_.size())];
        *bytes = bytes->substr(0, at) + other.substr(Place(other));
        break;
      }
      default:
        ReplaceToken(bytes, at);
    }
  }

  // The value after the next colon or comma of a text like JSON's.
  void ReplaceToken(std::string* bytes, size_t at) {
    const size_t begin = bytes->find_first_of(":,[", at);
    if (begin == std::string::npos) return;
    const bool word = begin + 1 < bytes->size() && (*bytes)[begin + 1] == '"';
    const size_t quote = word ? bytes->find('"', begin + 2) : std::string::npos;
    const size_t end =
        quote != std::string::npos ? quote + 1 : bytes->find_first_of(",]}", begin + 1);
    if (end == std::string::npos) return;
    bytes->replace(begin + 1, end - begin - 1, kTokens[Below(std::size(kTokens))]);
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_{20};
};

// For whoever has to find out what ended the program.
std::string* the_input = nullptr;
extern "C" void WriteInput(int) {
  const int file = open("fuzz.input", O_WRONLY | O_CREAT | O_TRUNC, 0600);
  (void)!write(file, the_input->data(), the_input->size());
  _exit(1);
}

void Run(const std::string& bytes) {
  static std::string input;
  input = bytes;
  the_input = &input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

void AddFiles(const fs::path& path, std::vector<std::string>* inputs) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
  } else {
    files = {path};
  }
  for (const fs::path& name : files) {
    std::ifstream file(name, std::ios::binary);
    inputs->emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
}

void WriteSeeds(const fs::path& folder) {
  fs::create_directories(folder);
  int number = 0;
  for (const std::string& seed : FuzzSeeds()) {
    std::ofstream(folder / ("seed" + std::to_string(number++)), std::ios::binary) << seed;
  }
}

int Main(int argc, char** argv) {
  size_t mutations = 8000;
  std::vector<std::string> inputs = FuzzSeeds();
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--mutations=", 0) == 0) {
      mutations = std::stoul(argument.substr(12));
    } else if (argument.rfind("--seeds=", 0) == 0) {
      WriteSeeds(argument.substr(8));
    } else {
      AddFiles(argument, &inputs);
    }
  }
  std::signal(SIGABRT, WriteInput);
  std::signal(SIGSEGV, WriteInput);
  for (const std::string& input : inputs) Run(input);
  Mutator mutator(inputs);
  for (size_t i = 0; i < mutations; ++i) {
    const std::string bytes = mutator.Next();
    Run(bytes);
  }
  std::cout << inputs.size() << " inputs, " << mutations << " mutations\n";
  return 0;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) { return denoised::Main(argc, argv); }
