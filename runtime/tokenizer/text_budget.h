// How much text a tokenizer may make of a text. Its file says what each step turns characters into,
// and forty steps that double a letter make a terabyte of it. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_TEXT_BUDGET_H_
#define DENOISED_RUNTIME_TOKENIZER_TEXT_BUDGET_H_

#include <cstddef>
#include <string>

#include "backends/error.h"

namespace denoised {

// Bytes that all steps together may still write; each spends before it writes. One encoding, one
// thread.
class TextBudget {
 public:
  // Of a prompt: 128 bytes for each of the longest prompt that a request may have, which the widest
  // characters of honest files do not need.
  static constexpr size_t kPromptBytes = 8 << 20;

  // `text` is what the error calls the text, and its field.
  TextBudget(size_t bytes, std::string text)
      : limit_(bytes), left_(bytes), text_(std::move(text)) {}

  // `name` of the step that spends from now on; borrowed.
  void BeginStep(const std::string& name) { step_ = &name; }

  // INVALID_ARGUMENT naming text and step where there is not as much left.
  void Spend(size_t bytes) {
    if (bytes > left_) throw TooMuch();
    left_ -= bytes;
  }

 private:
  Error TooMuch() const {
    return Error(StatusCode::kInvalidArgument,
                 text_ + ": the tokenizer's step " + (step_ ? *step_ : "") + " makes more than " +
                     std::to_string(limit_) + " bytes of it",
                 text_, "TOKENIZER_BUDGET");
  }

  const size_t limit_;
  size_t left_;
  const std::string text_;
  const std::string* step_ = nullptr;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_TEXT_BUDGET_H_
