// drill on the admin port.
#include <google/protobuf/util/time_util.h>

#include <array>
#include <cstdio>

#include "denoised/v1/admin.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;
using google::protobuf::util::TimeUtil;

std::string SecondsText(const google::protobuf::Duration& ttl) {
  std::array<char, 32> text;
  const auto ms = static_cast<double>(TimeUtil::DurationToMilliseconds(ttl));
  std::snprintf(text.data(), text.size(), "%g s", ms / 1000);
  return text.data();
}

int Drill(const Invocation& call) {
  CommonOptions options;
  v1::DrillRequest request;
  std::string fault;
  const std::vector<Flag> flags = {
      {"fault", "FAULT", "",
       "throw, stall (until the drill's end, or a cancel) or nan: what every call of the backend "
       "does.",
       SetChoice("fault", {"throw", "stall", "nan"}, &fault)},
      {"ttl", "TIME", "", "How long (10s, 2m); at most 10m.",
       [&](const std::string& text) {
         const auto ttl = ParsePositiveDuration("ttl", text);
         *request.mutable_ttl() = TimeUtil::MillisecondsToDuration(ttl.count());
       }},
      {"reason", "TEXT", "", "For the audit.",
       [&](const std::string& text) { request.set_reason(text); }}};
  const auto rest = ParseCommand(call, flags, &options, 1, 1);
  if (!rest) return kExitOk;
  if (fault.empty() || !request.has_ttl()) throw UsageError("a drill needs --fault and --ttl");
  request.set_backend(rest->front());
  request.set_fault(fault);
  const auto stub = v1::AdminService::NewStub(Connect(options.admin));
  const auto reply = Call(stub, &Stub::Drill, request, options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine(request.backend() + ": " + fault + " for " + SecondsText(request.ttl()));
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> GuardCommands() {
  return {
      {"drill", "NAME", "Has a backend throw, stall or give NaN for a while, as a rehearsal.",
       Uses::kAdmin, Drill, "  denoisectl drill SAGE_ATTN --fault=nan --ttl=30s\n",
       "The server wants --enable_drills."},
  };
}

}  // namespace denoised::cli
