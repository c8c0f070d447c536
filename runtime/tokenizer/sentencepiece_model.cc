#include "runtime/tokenizer/sentencepiece_model.h"

#include <cstdint>
#include <cstring>

#include "backends/error.h"
#include "runtime/tokenizer/unigram.h"

namespace denoised {
namespace {

// One field of a protobuf message.
struct Field {
  uint64_t number = 0;
  uint64_t varint = 0;     // wire type 0
  std::string_view bytes;  // wire types 1, 2 and 5
};

// Walks the fields of one message (protobuf.dev/programming-guides/encoding). Groups, long out of
// use, are refused.
class MessageReader {
 public:
  MessageReader(std::string_view bytes, const std::string& what) : rest_(bytes), what_(what) {}

  bool Next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = Varint();
    field = {};
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        field.varint = Varint();
        return true;
      case 1:
        field.bytes = Take(8);
        return true;
      case 2:
        field.bytes = Take(Varint());
        return true;
      case 5:
        field.bytes = Take(4);
        return true;
      default:
        throw Bad("a field of unknown kind");
    }
  }

  Error Bad(const std::string& why) const {
    return Error(StatusCode::kInvalidArgument, what_ + ": not a SentencePiece model: " + why,
                 what_);
  }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) throw Bad("cut in a number");
      const uint8_t byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Bad("a number of more than ten bytes");
  }

  std::string_view Take(uint64_t size) {
    if (size > rest_.size()) throw Bad("cut in a field");
    const std::string_view bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return bytes;
  }

  std::string_view rest_;
  const std::string& what_;
};

SentencePiece ParsePiece(std::string_view bytes, const std::string& what) {
  MessageReader reader(bytes, what);
  SentencePiece piece;
  Field field;
  while (reader.Next(field)) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) {
      if (field.bytes.size() != sizeof(float)) throw reader.Bad("a score that is no float");
      std::memcpy(&piece.score, field.bytes.data(), sizeof(float));
    }
    if (field.number == 3) {
      if (field.varint < 1 || field.varint > 6) throw reader.Bad("a piece of unknown type");
      piece.type = static_cast<SentencePiece::Type>(field.varint);
    }
  }
  return piece;
}

int ParseModelType(std::string_view trainer_spec, const std::string& what) {
  MessageReader reader(trainer_spec, what);
  int type = 1;
  Field field;
  while (reader.Next(field)) {
    if (field.number == 3) type = static_cast<int>(field.varint & 0x7F);
  }
  return type;
}

std::string ParseCharsmap(std::string_view normalizer_spec, const std::string& what) {
  MessageReader reader(normalizer_spec, what);
  std::string charsmap;
  Field field;
  while (reader.Next(field)) {
    if (field.number == 2) charsmap = field.bytes;
  }
  return charsmap;
}

}  // namespace

SentencePieceModel ParseSentencePieceModel(std::string_view bytes, const std::string& what) {
  MessageReader reader(bytes, what);
  SentencePieceModel model;
  Field field;
  while (reader.Next(field)) {
    if (field.number == 1) {
      // Two bytes make a piece here and fifty in memory.
      if (model.pieces.size() == Unigram::kMaxPieces) throw reader.Bad("too many pieces");
      model.pieces.push_back(ParsePiece(field.bytes, what));
    }
    if (field.number == 2) model.model_type = ParseModelType(field.bytes, what);
    if (field.number == 3) model.charsmap = ParseCharsmap(field.bytes, what);
  }
  if (model.pieces.empty()) throw reader.Bad("no pieces");
  return model;
}

}  // namespace denoised
