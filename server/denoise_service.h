// DenoiseService on gRPC's callback API: single denoising steps, and sessions (session_stream.h).
#ifndef DENOISED_SERVER_DENOISE_SERVICE_H_
#define DENOISED_SERVER_DENOISE_SERVICE_H_

#include "denoised/v1/denoise.grpc.pb.h"
#include "server/call_context.h"

namespace denoised {

using RawDenoiseService = v1::DenoiseService::WithRawCallbackMethod_Denoise<
    v1::DenoiseService::WithRawCallbackMethod_Session<v1::DenoiseService::Service>>;

// Thread-safe.
class DenoiseService : public RawDenoiseService {
 public:
  explicit DenoiseService(const CallContext& with) : with_(with) {}

  grpc::ServerUnaryReactor* Denoise(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(
      grpc::CallbackServerContext* context) override;

 private:
  const CallContext with_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_DENOISE_SERVICE_H_
