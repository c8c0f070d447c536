// Sessions between messages and plain structs; see convert.h.
#ifndef DENOISED_SERVER_SESSION_CONVERT_H_
#define DENOISED_SERVER_SESSION_CONVERT_H_

#include "denoised/v1/denoise.pb.h"
#include "runtime/session.h"

namespace denoised {

SessionRequest FromProto(v1::SessionOpen&& message);
// Of a request that is no open. INVALID_ARGUMENT naming "verb" where it has none.
SessionVerb FromProto(v1::SessionRequest&& message);

// Whether the request carries latents, asks for them, or is an open: what is not read ahead of.
bool IsLarge(const v1::SessionRequest& request);

// The answer to a request of this kind; `request_id` is the session that it named.
v1::SessionResponse ToProto(SessionReply&& reply, v1::SessionRequest::VerbCase verb,
                            const std::string& request_id);

}  // namespace denoised

#endif  // DENOISED_SERVER_SESSION_CONVERT_H_
