// ModelService on gRPC's callback API: what the server can run.
#ifndef DENOISED_SERVER_MODEL_SERVICE_H_
#define DENOISED_SERVER_MODEL_SERVICE_H_

#include "denoised/v1/model.grpc.pb.h"
#include "runtime/engine.h"
#include "server/metrics.h"

namespace denoised {

using RawModelService =
    v1::ModelService::WithRawCallbackMethod_ListModels<v1::ModelService::Service>;

// Thread-safe; engine and metrics are borrowed and outlive the service.
class ModelService : public RawModelService {
 public:
  ModelService(Engine* engine, Metrics* metrics) : engine_(engine), metrics_(metrics) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;

 private:
  Engine* const engine_;
  Metrics* const metrics_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_MODEL_SERVICE_H_
