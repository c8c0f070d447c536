// Reads spiece.model, SentencePiece's ModelProto. Torch-free and without protobuf: of the message
// only pieces, trainer_spec.model_type and normalizer_spec.precompiled_charsmap matter.
// Format: sentencepiece_model.proto of github.com/google/sentencepiece.
#ifndef DENOISED_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_
#define DENOISED_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_

#include <string>
#include <string_view>
#include <vector>

namespace denoised {

struct SentencePiece {
  enum class Type { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  std::string text;
  float score = 0;
  Type type = Type::kNormal;
};

struct SentencePieceModel {
  std::vector<SentencePiece> pieces;
  std::string charsmap;  // empty where the model does not normalise
  int model_type = 1;    // 1 is Unigram
};

// INVALID_ARGUMENT naming `what` where `bytes` is no such message.
SentencePieceModel ParseSentencePieceModel(std::string_view bytes, const std::string& what);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_
