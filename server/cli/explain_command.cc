// explain: which backend would run, and what becomes of every wish; on the admin port.
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "backends/attn_backend.h"
#include "backends/error.h"
#include "denoised/v1/admin.grpc.pb.h"
#include "runtime/request_limits.h"
#include "runtime/scope.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/lease_flags.h"
#include "server/cli/output.h"
#include "server/cli/text.h"
#include "server/cli/tune_command.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;

constexpr size_t kReasonColumns = 300;

struct ExplainOptions {
  CommonOptions common;
  v1::ExplainSelectionRequest request;
  std::string why_not;  // a backend; "" = everything is told
};

std::vector<Flag> WorkFlags(v1::ExplainSelectionRequest* request) {
  const auto whole = [](const std::string& name, const std::string& field,
                        std::function<void(int64_t)> set) {
    const auto& limit = WholeLimit(field);
    return Flag{name, "N", "", "As in generate. Between " + RangeText(limit) + ".",
                SetInt(name, limit.min, limit.max, std::move(set))};
  };
  return {
      {"model", "NAME", "", "Model; unset: the job's, else the server's default.",
       SetString(request->mutable_model())},
      whole("height", "height", [request](int64_t n) { request->set_height(n); }),
      whole("width", "width", [request](int64_t n) { request->set_width(n); }),
      whole("frames", "num_frames", [request](int64_t n) { request->set_num_frames(n); }),
      {"tenant", "NAME", "", "Whose work it is.",
       [request](const std::string& text) { request->set_tenant(text); }},
      {"job", "ID", "",
       "Which job or session it is, by its whole ID. Of one that has not ended everything that is "
       "not given here is its own.",
       [request](const std::string& text) { request->set_job_id(text); }},
  };
}

std::vector<Flag> PlaceFlags(v1::ExplainSelectionRequest* request) {
  return {
      {"role", "ROLE", "", "Only attention of this role: self or cross.",
       [request](const std::string& text) {
         std::string role;
         SetChoice("role", {"self", "cross"}, &role)(text);
         request->set_role(role);
       }},
      {"layer", "N", "", "At this layer, counted from 0; unset: at all of them.",
       SetInt("layer", 0, 100000, [request](int64_t n) { request->set_layer(n); })},
      {"step", "N", "",
       "At this step, counted from 0; unset: where the job stands, else the first.",
       SetInt("step", 0, 100000, [request](int64_t n) { request->set_step(n); })},
      {"sigma", "X", "", "At this noise level, for wishes that hold at some.",
       SetDouble("sigma", 0, 1e6, [request](double x) { request->set_sigma(x); })},
  };
}

std::vector<Flag> WhatIfFlags(v1::ExplainSelectionRequest* request) {
  std::vector<Flag> flags = {
      {"what_if_force", "NAME", "",
       "Explain as if this backend were forced, and say what that changes; its scope is in the "
       "flags that follow.",
       [request](const std::string& text) { request->mutable_what_if()->set_backend(text); }}};
  for (Flag& flag : LeaseFlags("what_if_", [request] { return request->mutable_what_if(); })) {
    flags.push_back(std::move(flag));
  }
  return flags;
}

std::vector<Flag> FlagsOf(ExplainOptions* options) {
  v1::ExplainSelectionRequest* request = &options->request;
  std::vector<Flag> flags = WorkFlags(request);
  for (auto part :
       {PlaceFlags(request), AttentionFlags(request->mutable_attention()), WhatIfFlags(request)}) {
    flags.insert(flags.end(), part.begin(), part.end());
  }
  flags.push_back({"why_not", "NAME", "",
                   "Say in one line why this backend does not run, or that it does; for "
                   "self-attention where --role names no other.",
                   SetString(&options->why_not)});
  return flags;
}

std::optional<int64_t> RuleOf(const v1::WishExplanation& wish) {
  return wish.has_rule() ? std::optional(wish.rule()) : std::nullopt;
}

std::string OutcomeText(const v1::WishExplanation& wish) {
  return wish.reason().empty() ? wish.outcome() : wish.outcome() + ": " + wish.reason();
}

// What stands against the backend itself, whoever wishes for it; "" where nothing does.
std::string WhyUnable(const v1::RoleExplanation& role, const std::string& backend) {
  for (const v1::BackendCandidate& candidate : role.candidates()) {
    if (candidate.backend() != backend) continue;
    return candidate.listed() ? candidate.why_not() : "the layer does not list it";
  }
  return "the server does not know it";
}

// What becomes of a backend at best: its wish, else why automatic selection does not take it.
std::string WhyNot(const v1::RoleExplanation& role, const std::string& backend) {
  const std::string unable = WhyUnable(role, backend);
  for (const v1::WishExplanation& wish : role.wishes()) {
    if (wish.backend() != backend) continue;
    if (wish.source() != "automatic") {
      return WhoChose(wish.source(), wish.lease_id(), RuleOf(wish)) + ", " + OutcomeText(wish);
    }
    if (wish.outcome() != "hidden") return wish.reason();
    return unable.empty() ? "could serve; " + wish.reason() : unable;
  }
  return unable.empty() ? "could serve, but runs only where it is asked for by name" : unable;
}

const v1::WishExplanation* Granted(const v1::RoleExplanation& role, const std::string& backend) {
  for (const v1::WishExplanation& wish : role.wishes()) {
    if (wish.backend() == backend && wish.outcome() == "granted") return &wish;
  }
  return nullptr;
}

void PrintWhyNot(const v1::RoleExplanation& role, const std::string& backend) {
  const std::string about = " for " + role.role() + "-attention: ";
  if (const v1::WishExplanation* wish = Granted(role, backend)) {
    const std::string where = wish->reason().empty() ? "" : ", " + wish->reason();
    return PrintLine(backend + " runs" + about +
                     WhoChose(wish->source(), wish->lease_id(), RuleOf(*wish)) + where);
  }
  PrintLine(backend + " does not run" + about + OneLine(WhyNot(role, backend), kReasonColumns));
}

void PrintLayers(const v1::RoleExplanation& role) {
  if (role.layers_size() < 2) return;
  for (const v1::LayerExplanation& layers : role.layers()) {
    const Interval interval = {layers.layers().first(), layers.layers().last()};
    PrintLine("  layers " + ToText(interval) + ": " +
              (layers.would_run().empty() ? "nothing can run" : layers.would_run()) + ", " +
              OneLine(layers.reason(), kReasonColumns));
  }
}

void PrintWishes(const v1::RoleExplanation& role) {
  std::vector<std::vector<std::string>> rows = {{"  WISH", "BACKEND", "WHERE", "OUTCOME", "WHY"}};
  for (const v1::WishExplanation& wish : role.wishes()) {
    std::string source = "  " + wish.source();
    if (!wish.lease_id().empty()) source += " " + wish.lease_id();
    if (wish.has_rule()) source += " rule " + std::to_string(wish.rule());
    rows.push_back({source, wish.backend(), wish.scope().empty() ? "everywhere" : wish.scope(),
                    wish.outcome(), OneLine(wish.reason(), kReasonColumns)});
  }
  PrintTable(rows);
}

// Backends that nobody wishes for and automatic selection does not try.
void PrintOthers(const v1::RoleExplanation& role) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::BackendCandidate& candidate : role.candidates()) {
    if (candidate.backend() == role.would_run()) continue;
    rows.push_back({"  not " + candidate.backend(),
                    OneLine(WhyNot(role, candidate.backend()), kReasonColumns)});
  }
  PrintTable(rows);
}

void PrintRole(const v1::RoleExplanation& role) {
  const v1::AttentionSpec& spec = role.spec();
  PrintLine(role.role() + ": " + (role.would_run().empty() ? "nothing can run" : role.would_run()));
  PrintLine("  because      " + (role.error().empty()
                                     ? WhoChose(role.source(), role.lease_id(), std::nullopt)
                                     : OneLine(role.error(), 500)));
  if (role.has_parameters()) {
    PrintLine("  with         " + OneLine(Json(role.parameters()), kReasonColumns));
  }
  if (role.has_measured()) {
    PrintLine("  measured     " + OneLine(MeasuredText(role.measured()), kReasonColumns));
  }
  PrintLine("  layer        " + std::to_string(spec.num_heads()) + " heads of " +
            std::to_string(spec.head_size()) + ", " + spec.dtype() + ", " +
            std::to_string(spec.q_len()) + " queries over " + std::to_string(spec.kv_len()) +
            " keys");
  if (!role.what_if().empty()) {
    PrintLine("  what if      " + OneLine(role.what_if(), kReasonColumns));
  }
  PrintLayers(role);
  PrintWishes(role);
  PrintOthers(role);
}

std::string KnownBackend(const std::string& name) {
  try {
    return std::string(AttnBackendName(CoerceAttnBackend(name, "--why_not")));
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

int Explain(const Invocation& call) {
  ExplainOptions options;
  v1::ExplainSelectionRequest& request = options.request;
  if (!ParseCommand(call, FlagsOf(&options), &options.common, 0, 0)) return kExitOk;
  if (request.has_what_if() && request.what_if().backend().empty()) {
    throw UsageError("--what_if_force is needed: which backend would be forced");
  }
  std::string backend;
  if (!options.why_not.empty()) {
    backend = KnownBackend(options.why_not);
    if (!request.has_role()) request.set_role("self");
  }
  const auto stub = AdminStub(options.common.admin);
  const auto reply = Call(stub, &Stub::ExplainSelection, request, options.common.admin);
  if (options.common.json) {
    PrintJson(reply);
    return kExitOk;
  }
  for (const v1::RoleExplanation& role : reply.roles()) {
    backend.empty() ? PrintRole(role) : PrintWhyNot(role, backend);
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> ExplainCommands() {
  return {
      {"explain", "", "Says which backend would run for each role, and why not the others.",
       Uses::kAdmin, Explain,
       "  denoisectl explain --backend=VIDEO_SPARSE_ATTN --param=sparsity=0.9 --frames=81\n"
       "  denoisectl explain --layer=3 --step=10 --tenant=studio\n"
       "  denoisectl explain --what_if_force=SAGE_ATTN --what_if_layers=0-5\n"
       "  denoisectl explain --why_not=FLASH_ATTN\n",
       "Every wish is listed in the order in which they decide, with what becomes of it: granted, "
       "refused\n(it cannot serve), hidden (a stronger one came first) or elsewhere (it does not "
       "hold here); then\nwhat automatic selection tries.\n"}};
}

}  // namespace denoised::cli
