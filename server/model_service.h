// ModelService on gRPC's callback API: what the server can run.
#ifndef DENOISED_SERVER_MODEL_SERVICE_H_
#define DENOISED_SERVER_MODEL_SERVICE_H_

#include "denoised/v1/model.grpc.pb.h"
#include "server/call_context.h"

namespace denoised {

using RawModelService =
    v1::ModelService::WithRawCallbackMethod_ListModels<v1::ModelService::Service>;

// Thread-safe.
class ModelService : public RawModelService {
 public:
  explicit ModelService(const CallContext& with) : with_(with) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;

 private:
  const CallContext with_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_MODEL_SERVICE_H_
