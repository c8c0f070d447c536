// Reads tokenizer.json, once it is parsed, into the parts that Tokenizer runs; its pieces that
// other files of the folder hold too are read by the same functions. Errors name the file and the
// node: INVALID_ARGUMENT, or UNIMPLEMENTED for what is sound but not supported. For
// tokenizer_files.cc. Torch-free; no state.
#ifndef DENOISED_RUNTIME_TOKENIZER_TOKENIZER_JSON_H_
#define DENOISED_RUNTIME_TOKENIZER_TOKENIZER_JSON_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/tokenizer/tokenizer_files.h"

namespace denoised {

Error BadTokenizer(const std::string& path, const std::string& message);
Error UnsupportedTokenizer(const std::string& path, const std::string& key,
                           const std::string& value, const std::string& supported);

// What the file says under `key`; null where it is absent.
nlohmann::json Member(const ConfigReader& file, const std::string& key);

// All of it. For the class of T5 only the vocabulary, the added tokens and the character map count:
// the rest of what it does is fixed.
void ReadTokenizerJson(const ConfigReader& file, bool t5, TokenizerParts& parts);

// The list of tokenizer.json, by ascending id.
std::vector<AddedToken> ReadAddedTokens(const std::string& path, const nlohmann::json& json);

// Throws where there are too many of them, or one is too long.
void CheckAddedTokens(const TokenizerParts& parts);

// One more normalizer: a precompiled character map in its binary form. `path` is for errors.
void AddCharsmap(const std::string& path, std::string_view blob, TokenizerParts& parts);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_TOKENIZER_JSON_H_
