// Driver of tokenizer_parity_test.py and clean_parity_test.py: JSON strings come in, one a line,
// and answers go out, one a line.
//   tokenizer_main FOLDER CLASS MAX_LENGTH   {"ids": [...], "length": N}
//   tokenizer_main --clean                   "cleaned"
#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/tokenizer/prompt_clean.h"
#include "runtime/tokenizer/tokenizer.h"

namespace {

using Json = nlohmann::json;

int Answer(const std::function<Json(const std::string&)>& answer) {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << answer(Json::parse(line).get<std::string>()).dump() << '\n';
  }
  return 0;
}

int Run(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--clean") return Answer(denoised::CleanPrompt);
  if (argc != 4) {
    std::fputs("usage: tokenizer_main FOLDER CLASS MAX_LENGTH | --clean\n", stderr);
    return 2;
  }
  const auto tokenizer = denoised::Tokenizer::Load(denoised::ModelFolder(argv[1]), argv[2]);
  const int64_t max_length = std::stoll(argv[3]);
  return Answer([&](const std::string& text) {
    const auto encoding = tokenizer->Encode(text, max_length);
    return Json{{"ids", encoding.ids}, {"length", encoding.length}};
  });
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_main: %s\n", error.what());
    return 1;
  }
}
