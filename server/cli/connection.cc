#include "server/cli/connection.h"

#include <chrono>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/cli/command.h"
#include "server/cli/generation_flags.h"
#include "server/cli/text.h"
#include "server/convert.h"

namespace denoised::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Every text of `message`, also within messages within it.
void RequireUtf8At(const Message& message, const std::string& path) {
  std::vector<const FieldDescriptor*> fields;
  const auto* reflection = message.GetReflection();
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string name = path + field->name();
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        RequireUtf8At(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                           : reflection->GetMessage(message, field),
                      name + ".");
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string what =
            WhatIsNotUtf8(field->is_repeated() ? reflection->GetRepeatedString(message, field, i)
                                               : reflection->GetString(message, field));
        if (!what.empty()) throw UsageError("the " + name + " is not UTF-8 text: " + what);
      }
    }
  }
}

// The request's field that the server's google.rpc details name; "" where they name none.
std::string FieldAtFault(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const auto& detail : details.details()) {
    google::rpc::BadRequest bad;
    if (detail.UnpackTo(&bad) && bad.field_violations_size() > 0) {
      return bad.field_violations(0).field();
    }
  }
  return "";
}

std::string Hint(const grpc::Status& status, const std::string& address) {
  const std::string flag = FlagOfField(FieldAtFault(status));
  if (!flag.empty()) return " (--" + flag + ")";
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty()) {
    return " (is a server listening on " + address + "?)";
  }
  if (const auto delay = RetryDelayOf(status)) {
    const auto seconds = std::chrono::ceil<std::chrono::seconds>(*delay);
    return " (try again in " + std::to_string(seconds.count()) + " s)";
  }
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
    return " (" + address + " does not know this call: --server is the public port, --admin the " +
           "other)";
  }
  return "";
}

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A proxy for the web is not a way to a gRPC server on a private address.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A server that is back is found by the next call: who calls again paces that.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<v1::AdminService::Stub> AdminStub(const std::string& address) {
  return v1::AdminService::NewStub(Connect(address));
}

void RequireUtf8(const Message& request) { RequireUtf8At(request, ""); }

void CheckStatus(const grpc::Status& status, const std::string& address) {
  if (status.ok()) return;
  throw CommandError(std::string(StatusCodeName(status.error_code())) + ": " +
                     status.error_message() + Hint(status, address));
}

}  // namespace denoised::cli
