#include "server/wire_budget.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <map>
#include <string>

#include "backends/error.h"
#include "denoised/v1/types.pb.h"

namespace denoised {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

Error Malformed(const Descriptor& type) {
  return Error(StatusCode::kInvalidArgument, "the request is not a well-formed " + type.full_name(),
               "", "MALFORMED_MESSAGE");
}

class Walk {
 public:
  Walk(CodedInputStream* in, const Descriptor& root) : in_(in), root_(root) {}

  // The fields of one message up to the end of its bytes; `prefix` is its place in the request.
  void Message(const Descriptor& type, const std::string& prefix) {
    while (const uint32_t tag = in_->ReadTag()) {
      const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
      const std::string name = field ? prefix + field->name() : prefix + "(unknown fields)";
      Value(WireFormatLite::GetTagWireType(tag), field, name);
    }
    if (!in_->ConsumedEntireMessage()) throw Malformed(root_);
  }

 private:
  void Value(WireFormatLite::WireType wire, const FieldDescriptor* field, const std::string& name) {
    switch (wire) {
      case WireFormatLite::WIRETYPE_VARINT: {
        uint64_t value = 0;
        if (!in_->ReadVarint64(&value)) throw Malformed(root_);
        return Spend(name, 1);
      }
      case WireFormatLite::WIRETYPE_FIXED64:
        return SkipAndSpend(name, 8);
      case WireFormatLite::WIRETYPE_FIXED32:
        return SkipAndSpend(name, 4);
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        return Delimited(field, name);
      default:  // groups: no message of ours has one
        throw Malformed(root_);
    }
  }

  void Delimited(const FieldDescriptor* field, const std::string& name) {
    uint32_t length = 0;
    if (!in_->ReadVarint32(&length) || length > INT32_MAX) throw Malformed(root_);
    if (field == Elements()) {
      if (!in_->Skip(static_cast<int>(length))) throw Malformed(root_);
      return Spend(name, 0);
    }
    if (!IsOwnMessage(field)) return SkipAndSpend(name, length);
    const auto limit = in_->PushLimit(static_cast<int>(length));
    Message(*field->message_type(), name + ".");
    if (in_->BytesUntilLimit() != 0) throw Malformed(root_);
    in_->PopLimit(limit);
    Spend(name, 0);
  }

  // Refused before they are skipped: what is too large need not be there to be refused.
  void SkipAndSpend(const std::string& name, uint32_t bytes) {
    Spend(name, bytes);
    if (!in_->Skip(static_cast<int>(bytes))) throw Malformed(root_);
  }

  void Spend(const std::string& name, int64_t bytes) {
    constexpr int64_t kTag = 1;  // so that many empty fields cost something too
    int64_t& spent = spent_[name];
    spent += bytes + kTag;
    if (spent > kMaxFieldBytes + kTag) {
      throw InvalidField(name, "at most 131072 bytes beside the elements of tensors");
    }
    total_ += bytes + kTag;
    if (total_ > kMaxBytes) {
      throw InvalidField(name,
                         "the request has more than 262144 bytes beside the elements of tensors");
    }
  }

  // Those of denoised.v1 are looked into, so that the name is as exact as in every other refusal.
  static bool IsOwnMessage(const FieldDescriptor* field) {
    return field != nullptr && field->message_type() != nullptr &&
           field->message_type()->file()->package() == v1::Tensor::descriptor()->file()->package();
  }

  static const FieldDescriptor* Elements() {
    static const FieldDescriptor* const kData =
        v1::Tensor::descriptor()->FindFieldByNumber(v1::Tensor::kDataFieldNumber);
    return kData;
  }

  CodedInputStream* const in_;
  const Descriptor& root_;
  std::map<std::string, int64_t> spent_;
  int64_t total_ = 0;
};

}  // namespace

void CheckWireBudget(google::protobuf::io::ZeroCopyInputStream* stream, const Descriptor& type) {
  CodedInputStream in(stream);
  Walk(&in, type).Message(type, "");
}

}  // namespace denoised
