// Talking to a server: channels, calls, and what a failed one says.
#ifndef DENOISED_SERVER_CLI_CONNECTION_H_
#define DENOISED_SERVER_CLI_CONNECTION_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "denoised/v1/admin.grpc.pb.h"

namespace denoised::cli {

std::shared_ptr<grpc::Channel> Connect(const std::string& address);
std::unique_ptr<v1::AdminService::Stub> AdminStub(const std::string& address);

// Throws UsageError naming the field where text of a request is not UTF-8: protobuf would only
// complain on standard error and send it.
void RequireUtf8(const google::protobuf::Message& request);

// Throws CommandError with the code and the message, the flag that set the field at fault, and
// where the server cannot be reached or does not know the call, the address.
void CheckStatus(const grpc::Status& status, const std::string& address);

// A blocking unary call: `stub->*method`, with half a minute for the reply unless `patience` says
// otherwise.
template <typename Stub, typename Request, typename Response>
Response Call(const std::unique_ptr<Stub>& stub,
              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
              const Request& request, const std::string& address,
              std::chrono::seconds patience = std::chrono::seconds(30)) {
  RequireUtf8(request);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + patience);
  Response response;
  CheckStatus(((*stub).*method)(&context, request, &response), address);
  return response;
}

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_CONNECTION_H_
