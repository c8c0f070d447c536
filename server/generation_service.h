// GenerationService on gRPC's callback API: whole jobs.
#ifndef DENOISED_SERVER_GENERATION_SERVICE_H_
#define DENOISED_SERVER_GENERATION_SERVICE_H_

#include "denoised/v1/generation.grpc.pb.h"
#include "server/call_context.h"

namespace denoised {

// The generated class with every method in its raw form (see call.h).
using RawGenerationService = v1::GenerationService::WithRawCallbackMethod_SubmitJob<
    v1::GenerationService::WithRawCallbackMethod_GetJob<
        v1::GenerationService::WithRawCallbackMethod_WatchJob<
            v1::GenerationService::WithRawCallbackMethod_ListJobs<
                v1::GenerationService::WithRawCallbackMethod_CancelJob<
                    v1::GenerationService::WithRawCallbackMethod_SuspendJob<
                        v1::GenerationService::WithRawCallbackMethod_ResumeJob<
                            v1::GenerationService::WithRawCallbackMethod_DeleteJob<
                                v1::GenerationService::WithRawCallbackMethod_FetchArtifact<
                                    v1::GenerationService::WithRawCallbackMethod_Generate<
                                        v1::GenerationService::Service>>>>>>>>>>;

// Thread-safe. Methods as in generation.proto.
class GenerationService : public RawGenerationService {
 public:
  explicit GenerationService(const CallContext& with) : with_(with) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* SuspendJob(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ResumeJob(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchArtifact(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer* in) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in) override;

 private:
  const CallContext with_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_GENERATION_SERVICE_H_
