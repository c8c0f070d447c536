// audit: what operators changed, as it was and as it comes.
#include <google/protobuf/util/time_util.h>

#include <cstdint>
#include <limits>
#include <string>

#include "denoised/v1/admin.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

using google::protobuf::util::TimeUtil;

constexpr size_t kTextColumns = 200;

// "REFERENCE, server", "90.0 s left -> 600.0 s left", "info -> debug".
std::string ChangeOf(const v1::AuditEvent& event) {
  if (event.old().empty()) return OneLine(event.new_(), kTextColumns);
  if (event.new_().empty()) return "was " + OneLine(event.old(), kTextColumns);
  return OneLine(event.old(), kTextColumns) + " -> " + OneLine(event.new_(), kTextColumns);
}

void PrintEvent(const v1::AuditEvent& event, bool json) {
  if (json) return PrintJson(event);
  std::string line = std::to_string(event.number()) + "  " + TimeUtil::ToString(event.time()) +
                     "  " + event.who() + "  " + event.what() + " " + event.subject();
  if (const std::string change = ChangeOf(event); !change.empty()) line += ": " + change;
  if (event.has_ends_at()) line += ", ends " + TimeUtil::ToString(event.ends_at());
  if (!event.reason().empty()) line += " (" + OneLine(event.reason(), kTextColumns) + ")";
  PrintLine(line);
  FlushOutput();
}

std::vector<Flag> AuditFlags(v1::WatchAuditRequest* request, bool* follow) {
  return {{"follow", "", "", "Stay, and print each change as it comes.", SetBool("follow", follow)},
          {"after", "N", "0", "Only changes with larger numbers.",
           SetInt("after", 0, std::numeric_limits<int64_t>::max(), [request](int64_t number) {
             request->set_after(static_cast<uint64_t>(number));
           })}};
}

int Audit(const Invocation& call) {
  CommonOptions options;
  v1::WatchAuditRequest request;
  bool follow = false;
  if (!ParseCommand(call, AuditFlags(&request, &follow), &options, 0, 0)) return kExitOk;
  request.set_follow(follow);
  const auto stub = AdminStub(options.admin);
  grpc::ClientContext context;
  const auto reader = stub->WatchAudit(&context, request);
  for (v1::AuditEvent event; reader->Read(&event);) PrintEvent(event, options.json);
  CheckStatus(reader->Finish(), options.admin);
  return kExitOk;
}

}  // namespace

std::vector<Command> AuditCommands() {
  return {{"audit", "", "Lists what operators changed, and what became of it; --follow stays.",
           Uses::kAdmin, Audit,
           "  denoisectl audit --follow\n"
           "  denoisectl audit --after=41 --json\n",
           "Each line has a number; --after=N goes on behind it.\n"}};
}

}  // namespace denoised::cli
