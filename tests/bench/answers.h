// What the programs share that the bench asks while they live: a JSON request a line, and its
// answer.
#ifndef DENOISED_TESTS_BENCH_ANSWERS_H_
#define DENOISED_TESTS_BENCH_ANSWERS_H_

#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

namespace denoised {

// `subject.Answer(request)` for each line, until there is none; what it throws is the answer.
template <typename Subject>
void AnswerLines(Subject& subject) {
  for (std::string line; std::getline(std::cin, line);) {
    nlohmann::json answer;
    try {
      answer = subject.Answer(nlohmann::json::parse(line));
    } catch (const std::exception& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
}

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_ANSWERS_H_
