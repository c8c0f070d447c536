// AdminService on gRPC's callback API: leases (admin_leases.cc), measurements (tune_calls.cc),
// rehearsals and comparisons (admin_guard.cc), models (admin_models.cc), explanations, draining
// (admin_service.cc).
// Registered on the admin listener only.
#ifndef DENOISED_SERVER_ADMIN_SERVICE_H_
#define DENOISED_SERVER_ADMIN_SERVICE_H_

#include <functional>
#include <optional>
#include <string>

#include "denoised/v1/admin.grpc.pb.h"
#include "server/audit_stream.h"
#include "server/call_context.h"

namespace denoised {

using RawModelChanges = v1::AdminService::WithRawCallbackMethod_LoadModel<
    v1::AdminService::WithRawCallbackMethod_UnloadModel<v1::AdminService::Service>>;
using RawAdminService = v1::AdminService::WithRawCallbackMethod_ForceBackend<
    v1::AdminService::WithRawCallbackMethod_HoldBackend<v1::AdminService::WithRawCallbackMethod_RenewLease<
        v1::AdminService::WithRawCallbackMethod_ReleaseForce<
            v1::AdminService::WithRawCallbackMethod_ListLeases<
                v1::AdminService::WithRawCallbackMethod_ListBackends<
                    v1::AdminService::WithRawCallbackMethod_ExplainSelection<
                        v1::AdminService::WithRawCallbackMethod_Drain<
                            v1::AdminService::WithRawCallbackMethod_SetLogLevel<
                                v1::AdminService::WithRawCallbackMethod_WatchAudit<
                                    v1::AdminService::WithRawCallbackMethod_Tune<
                                        v1::AdminService::WithRawCallbackMethod_ExportMeasurements<
                                            v1::AdminService::WithRawCallbackMethod_ImportMeasurements<
                                                v1::AdminService::WithRawCallbackMethod_Drill<
                                                    v1::AdminService::WithRawCallbackMethod_Shadow<
                                                        v1::AdminService::WithRawCallbackMethod_ListShadows<
                                                            v1::AdminService::
                                                                WithRawCallbackMethod_StopShadow<
                                                                    RawModelChanges>>>>>>>>>>>>>>>>>;

// Thread-safe. Each change is in the audit: those of leases by the policy's listener, others by
// what makes them here, and those of models by the engine.
class AdminService : public RawAdminService {
 public:
  // `drain` refuses new work and turns health off; idempotent.
  AdminService(const CallContext& with, std::function<void()> drain)
      : with_(with), drain_(std::move(drain)) {}

  grpc::ServerUnaryReactor* ForceBackend(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in,
                                         grpc::ByteBuffer* out) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* HoldBackend(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* in) override;
  grpc::ServerUnaryReactor* RenewLease(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ReleaseForce(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in,
                                         grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ListLeases(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ListBackends(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in,
                                         grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ExplainSelection(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* in,
                                             grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                  grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* SetLogLevel(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Drill(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                  grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Shadow(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ListShadows(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* StopShadow(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchAudit(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* in) override {
    return denoised::WatchAudit(with_, context, in);
  }

  // admin_models.cc
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;

  // tune_calls.cc
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Tune(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in) override;
  grpc::ServerUnaryReactor* ExportMeasurements(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* in,
                                               grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* ImportMeasurements(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* in,
                                               grpc::ByteBuffer* out) override;

 private:
  // Each by `peer`. They throw Error. AddForce checks first whether it can serve anything.
  Lease AddForce(LeaseRequest request, const std::string& peer, SelectionPolicy::OnEnd on_end);
  Lease Renew(const v1::RenewLeaseRequest& request, const std::string& peer);
  int Release(const v1::ReleaseForceRequest& request, const std::string& peer);
  v1::ListLeasesResponse Listed() const;
  void SetLevel(LogLevel level, const std::string& peer);

  template <typename Request>
  static std::optional<uint64_t> ExpectedGeneration(const Request& request) {
    if (!request.has_expected_generation()) return std::nullopt;
    return request.expected_generation();
  }

  Engine& engine() const { return with_.gate->Require(); }

  const CallContext with_;
  const std::function<void()> drain_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_ADMIN_SERVICE_H_
