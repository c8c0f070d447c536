// The calls of AdminService that change and list leases.
#include <memory>
#include <utility>

#include "server/admin_service.h"
#include "server/call.h"
#include "server/convert_lease.h"
#include "server/convert_status.h"
#include "server/convert_values.h"
#include "server/hold_stream.h"

namespace denoised {

Lease AdminService::AddForce(LeaseRequest request, const std::string& peer,
                             SelectionPolicy::OnEnd on_end) {
  if (const auto refused = engine().CheckForce(request)) throw *refused;
  request.holder = peer;
  return engine().policy().Force(std::move(request), std::move(on_end));
}

grpc::ServerUnaryReactor* AdminService::ForceBackend(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ForceBackendRequest>(
      context, with_.pool, in, out, with_.metrics, "ForceBackend",
      [this, peer = context->peer()](const v1::ForceBackendRequest& request) {
        return ToProto(AddForce(FromProto(request), peer, {}));
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* AdminService::HoldBackend(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "HoldBackend");
  std::shared_ptr<HoldStream> stream;
  const grpc::Status status = StatusOf([&] {
    stream = std::make_shared<HoldStream>(timer, &engine().policy(),
                                          with_.open_calls->Enter(context->peer()));
    stream->Hold();
  });
  if (!status.ok()) return new FailedStream(timer, status);
  const auto open = [this, stream, bytes = *in, peer = context->peer()] {
    const grpc::Status opened = StatusOf([&] {
      v1::HoldBackendRequest request;
      ParseMessage(bytes, &request);
      stream->Start(AddForce(FromProto(request), peer, stream->Ender()));
    });
    if (!opened.ok()) stream->Fail(opened);
  };
  if (!with_.pool->Post(in->Length(), open)) stream->Fail(ToStatus(TooBusy()));
  return stream.get();
}

Lease AdminService::Renew(const v1::RenewLeaseRequest& request, const std::string& peer) {
  if (request.lease_id().empty()) throw InvalidField("lease_id", "must not be empty");
  std::optional<std::chrono::milliseconds> ttl;
  if (request.has_ttl()) ttl = FromProto(request.ttl(), "ttl");
  return engine().policy().Renew(request.lease_id(), ttl, peer, ExpectedGeneration(request));
}

grpc::ServerUnaryReactor* AdminService::RenewLease(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::RenewLeaseRequest>(context, in, out, with_.metrics, "RenewLease",
                                            [this, context](const v1::RenewLeaseRequest& request) {
                                              return ToProto(Renew(request, context->peer()));
                                            });
}

int AdminService::Release(const v1::ReleaseForceRequest& request, const std::string& peer) {
  const std::string& id = request.lease_id();
  if (request.all() != id.empty()) {
    throw InvalidField("lease_id", request.all() ? "must be empty with all" : "must not be empty");
  }
  int released = 1;
  if (request.all()) {
    released = engine().policy().Clear(peer, ExpectedGeneration(request));
  } else if (!engine().policy().Release(id, peer, ExpectedGeneration(request))) {
    throw Error(StatusCode::kNotFound, "no live force '" + id.substr(0, 64) + "'", "lease_id",
                "LEASE_NOT_FOUND");
  }
  return released;
}

grpc::ServerUnaryReactor* AdminService::ReleaseForce(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ReleaseForceRequest>(
      context, in, out, with_.metrics, "ReleaseForce",
      [this, context](const v1::ReleaseForceRequest& request) {
        v1::ReleaseForceResponse response;
        response.set_released(Release(request, context->peer()));
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::ListLeases(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListLeasesRequest>(
      context, in, out, with_.metrics, "ListLeases",
      [this](const v1::ListLeasesRequest&) { return Listed(); });
}

v1::ListLeasesResponse AdminService::Listed() const {
  const SelectionPolicy& policy = engine().policy();
  v1::ListLeasesResponse response;
  // First: a list that is newer makes a change with this generation fail, an older one would let it
  // pass.
  response.set_generation(policy.generation());
  for (const Lease& force : policy.List()) {
    v1::Lease& lease = *response.add_leases() = ToProto(force);
    const auto judged = force.budget ? engine().Judged(force.id) : std::nullopt;
    if (!judged) continue;
    lease.mutable_judged()->set_samples(judged->first);
    lease.mutable_judged()->set_at_least(judged->second);
  }
  return response;
}

}  // namespace denoised
