// Looks over the bytes of a request before they are parsed.
//
// A message may be large for one reason only: the elements of its tensors. Everything else is small
// in every honest request, and expensive to parse in a dishonest one: 60 MB of a
// google.protobuf.Struct become 1.8 GB of objects. So the fields are walked as they lie on the
// wire, which costs nothing and allocates nothing, and what is too large is refused by name.
#ifndef DENOISED_SERVER_WIRE_BUDGET_H_
#define DENOISED_SERVER_WIRE_BUDGET_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/zero_copy_stream.h>

#include <cstdint>

namespace denoised {

// Bytes of one field of a request, the elements of tensors apart. A repeated field counts as a
// whole, and so do all unknown fields together.
inline constexpr int64_t kMaxFieldBytes = int64_t{128} << 10;
// Of a whole request, likewise: a prompt, a negative prompt and parameters of 64 KiB each are legal
// together.
inline constexpr int64_t kMaxBytes = 2 * kMaxFieldBytes;

// `stream` holds a message of type `type`. Throws INVALID_ARGUMENT naming the field that is over
// the budget, or (reason MALFORMED_MESSAGE) where the bytes are no message at all.
void CheckWireBudget(google::protobuf::io::ZeroCopyInputStream* stream,
                     const google::protobuf::Descriptor& type);

}  // namespace denoised

#endif  // DENOISED_SERVER_WIRE_BUDGET_H_
