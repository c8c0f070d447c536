// DenoiseService on gRPC's callback API: single denoising steps.
#ifndef DENOISED_SERVER_DENOISE_SERVICE_H_
#define DENOISED_SERVER_DENOISE_SERVICE_H_

#include "denoised/v1/denoise.grpc.pb.h"
#include "runtime/engine.h"
#include "server/metrics.h"

namespace denoised {

using RawDenoiseService =
    v1::DenoiseService::WithRawCallbackMethod_Denoise<v1::DenoiseService::Service>;

// Thread-safe; engine and metrics are borrowed and outlive the service.
class DenoiseService : public RawDenoiseService {
 public:
  DenoiseService(Engine* engine, Metrics* metrics) : engine_(engine), metrics_(metrics) {}

  grpc::ServerUnaryReactor* Denoise(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;

 private:
  Engine* const engine_;
  Metrics* const metrics_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_DENOISE_SERVICE_H_
