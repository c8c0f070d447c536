#include "runtime/pipelines/wan_step.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <functional>
#include <utility>

#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/models/finite.h"
#include "runtime/pipelines/wan_pipeline.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr auto kSelf = static_cast<size_t>(AttentionRole::kSelf);

// A run that takes part in a step.
struct Partaker {
  size_t place;  // among the step's runs
  WanStepRun* run;
  std::vector<StepPass> passes;
  AttentionPlan plan = {};
  std::vector<at::Tensor> predictions = {};  // one a pass
};

// One pass of a forward.
struct Part {
  Partaker* owner;
  size_t pass;
  AttentionPlan plan;  // the owner's, its calls of self-attention tallied with the group's

  const StepPass& step() const { return owner->passes[pass]; }
  const RolePlan& self() const { return owner->plan[kSelf]; }
  int64_t rows() const { return step().latents.size(0); }
};

// Parts whose self-attention is one call in each layer.
struct Group {
  std::vector<Part*> parts;
  std::deque<AttentionTally> tallies;  // of each slot
  int64_t rows = 0;

  // LibTorch's own attention does not promise a row its bits in any company, nor do the libraries
  // of a GPU: each part has its call.
  bool Takes(const RolePlan& plan, at::Device device) const {
    if (!device.is_cpu()) return false;
    return parts.front()->self().Equals(plan) &&
           std::ranges::none_of(plan.slots, [](const AttentionSlot& slot) {
             return slot.id == AttnBackend::kTorchSdpa;
           });
  }
  void Add(Part* part) {
    part->plan = part->owner->plan;
    std::vector<AttentionSlot>& slots = part->plan[kSelf].slots;
    tallies.resize(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      slots[i].tally = &tallies[i];
      for (WatchedRows& watched : slots[i].watched) watched = {watched.calls, rows, part->rows()};
    }
    parts.push_back(part);
    rows += part->rows();
    if (parts.size() > 1) WatchToo(slots);
  }
  // The calls are made by the first part's plan.
  void WatchToo(const std::vector<AttentionSlot>& slots) {
    std::vector<AttentionSlot>& first = parts.front()->plan[kSelf].slots;
    for (size_t i = 0; i < slots.size(); ++i) {
      first[i].watched.insert(first[i].watched.end(), slots[i].watched.begin(),
                              slots[i].watched.end());
    }
  }
  AttnBackend Ran() const { return parts.front()->plan[kSelf].MostCalled(); }
  // Each part's share of the calls, to its run's planner.
  void ShareOut() const {
    for (const Part* part : parts) {
      const double share = static_cast<double>(part->rows()) / static_cast<double>(rows);
      for (size_t i = 0; i < tallies.size(); ++i) {
        part->self().slots[i].tally->AddShare(tallies[i], 1, share);
      }
    }
  }
};

// By the order of each one's first part.
std::deque<Group> GroupsOf(std::vector<Part>* parts, at::Device device) {
  std::deque<Group> groups;
  for (Part& part : *parts) {
    const auto found = std::ranges::find_if(
        groups, [&](const Group& group) { return group.Takes(part.self(), device); });
    (found != groups.end() ? *found : groups.emplace_back()).Add(&part);
  }
  return groups;
}

// The kernel that attended most rows.
AttnBackend MostRows(const std::deque<Group>& groups) {
  std::array<int64_t, kNumAttnBackends> rows{};
  for (const Group& group : groups) rows[static_cast<size_t>(group.Ran())] += group.rows;
  return static_cast<AttnBackend>(std::ranges::max_element(rows) - rows.begin());
}

// All parts of a forward, in the order of their groups.
struct Batch {
  Batch(std::vector<Part>* parts, at::Device device) : groups(GroupsOf(parts, device)) {
    for (const Group& group : groups) {
      for (Part* part : group.parts) {
        const StepPass& step = part->step();
        order.push_back(part);
        sets.push_back({step.latents, step.timestep, step.text, &part->plan});
        rows.rows.insert(rows.rows.end(), step.rows.begin(), step.rows.end());
      }
    }
    rows.is_cfg_negative = std::ranges::all_of(
        rows.rows, [](const ForwardRow& row) { return row.branch == Branch::kUnconditional; });
  }
  ForwardContext Context() const {
    ForwardContext context = ContextOf(rows);
    if (groups.size() == 1) context.attn_metadata = &order.front()->plan;
    return context;
  }

  std::deque<Group> groups;
  std::vector<Part*> order;
  std::vector<RowSet> sets;
  ForwardBatch rows;
};

std::vector<Partaker> PartakersOf(const std::vector<Run*>& runs,
                                  std::vector<std::optional<Error>>* errors) {
  std::vector<Partaker> partakers;
  for (size_t i = 0; i < runs.size(); ++i) {
    Partaker one{i, dynamic_cast<WanStepRun*>(runs[i]), {}};
    TORCH_CHECK(one.run != nullptr && runs[i]->Next().kind == UnitKind::kStep,
                "a step of what has none");
    (*errors)[i] = Caught([&] { one.plan = one.run->Prepare(&one.passes); });
    if ((*errors)[i]) {
      StopPoint();  // what stops one stops all
    } else {
      partakers.push_back(std::move(one));
    }
  }
  return partakers;
}

// Every pass of every run.
std::vector<Part> PartsOf(std::vector<Partaker>* partakers) {
  std::vector<Part> parts;
  for (Partaker& one : *partakers) {
    one.predictions.resize(one.passes.size());
    for (size_t pass = 0; pass < one.passes.size(); ++pass) parts.push_back({&one, pass, {}});
  }
  return parts;
}

// One forward of all parts.
void RunForward(const WanTransformer& transformer, const std::string& model, at::Device device,
                std::vector<Part> parts) {
  const Batch batch(&parts, device);
  const auto report = [&](const ForwardContext& context, double seconds) {
    const auto grid = transformer.TokenGrid(batch.sets.front().latents.sizes());
    const auto rows = static_cast<int64_t>(batch.rows.rows.size());
    batch.order.front()->owner->run->observer()->OnForward(
        model, MostRows(batch.groups), context.branch, rows, rows * grid[0] * grid[1] * grid[2],
        seconds);
  };
  std::function<void()> synchronize;
  if (!device.is_cpu()) {  // a CUDA forward would be timed by its launches
    synchronize = [device] {
      c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
    };
  }
  std::vector<at::Tensor> predictions;
  {
    const ScopedForwardContext scope(batch.Context(), report, synchronize);
    predictions = transformer.Forward(batch.sets);
  }
  for (const Group& group : batch.groups) group.ShareOut();
  for (size_t i = 0; i < batch.order.size(); ++i) {
    const Part& part = *batch.order[i];
    part.owner->predictions[part.pass] = std::move(predictions[i]);
  }
}

// Where the memory of one forward does not suffice, one of each half.
void RunForwards(const WanTransformer& transformer, const std::string& model, at::Device device,
                 CallGuard* guard, const std::vector<Part>& parts) {
  const auto error = Caught([&] { RunForward(transformer, model, device, parts); });
  if (!error) return;
  if (error->reason() != "MEMORY" || parts.size() == 1) throw *error;
  guard->TakeFailure();  // of the call whose memory it was
  const auto half = parts.begin() + std::ssize(parts) / 2;
  RunForwards(transformer, model, device, guard, {parts.begin(), half});
  RunForwards(transformer, model, device, guard, {half, parts.end()});
}

bool AnyRowIsOneNumber(const at::Tensor& latents) {
  const at::Tensor rows = latents.flatten(1);
  return rows.size(1) > 1 && rows.eq(rows.narrow(1, 0, 1)).all(1).any().item<bool>();
}

}  // namespace

std::optional<Error> WhyUnsound(const at::Tensor& latents, const AttentionPlanner& planner,
                                const std::string& what, const std::string& where) {
  if (!AllFinite(latents)) {
    return Error(StatusCode::kInternal, what + " not finite" + where, "", "NON_FINITE");
  }
  if (planner.suspects() && AnyRowIsOneNumber(latents)) {
    return Error(StatusCode::kInternal, what + " all equal" + where, "", "DEGENERATE");
  }
  return std::nullopt;
}

std::vector<std::optional<Error>> WanPipeline::Step(const std::vector<Run*>& runs) {
  const c10::InferenceMode inference;
  const auto start = SteadyClock::now();
  std::vector<std::optional<Error>> errors(runs.size());
  std::vector<Partaker> partakers = PartakersOf(runs, &errors);
  if (partakers.empty()) return errors;
  const ScopedLinearNumerics numerics(partakers.front().run->linear());
  RunForwards(*transformer_, info_.name, device_, setting_.guard.get(), PartsOf(&partakers));
  const std::chrono::duration<double> seconds = SteadyClock::now() - start;
  int64_t rows = 0;
  for (const Partaker& one : partakers) rows += runs[one.place]->Next().rows;
  const double seconds_a_row = seconds.count() / static_cast<double>(rows);
  for (Partaker& one : partakers) {
    const double share = seconds_a_row * static_cast<double>(runs[one.place]->Next().rows);
    one.run->planner()->BookForward();
    errors[one.place] = Caught([&] {
      one.run->planner()->RequireBudgets();
      one.run->Take(one.predictions, share);
    });
    if (!errors[one.place]) one.run->planner()->Complete();
  }
  return errors;
}

}  // namespace denoised
