// Rows of control_growth.cc, and
// H2: what receipts and metrics cost a step: a planner that books a forward and completes a step
// under the server's own Metrics, beside the same that only selects.
#include "runtime/attention/attention_planner.h"
#include "server/metrics.h"
#include "tests/bench/control_growth.h"
#include "tests/bench/timing.h"

namespace denoised {
namespace {

// What only selects and fills the slots of a step, or books, completes and reports it as well.
class Steps {
 public:
  Steps(const PlannerSetting& setting, Metrics* metrics)
      : metrics_(metrics), planner_(setting, {}, metrics) {
    for (AttentionRole role : {AttentionRole::kSelf, AttentionRole::kCross}) {
      AttentionSpec& spec = specs_.emplace_back();
      spec.role = role;
      spec.num_heads = 12;
      spec.head_size = 128;
      spec.q_len = spec.kv_len = 6240;
      spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa};
    }
  }

  void Run(int count, bool tells) {
    for (int step = 0; step < count; ++step) {
      for (const RolePlan& role : planner_.Prepare(specs_, step, count, 0.5)) {
        for (const AttentionSlot& slot : role.slots) {
          slot.tally->Of(slot.id).calls += 30;
          slot.tally->Of(slot.id).seconds += 1e-3;
        }
      }
      if (!tells) continue;
      planner_.BookForward();
      planner_.Complete();
      metrics_->OnForward("model", AttnBackend::kFlashAttn, Branch::kMixed, 2, 12480, 0.05);
      metrics_->OnStep("model", 0.05);
    }
  }

 private:
  Metrics* const metrics_;
  AttentionPlanner planner_;
  std::vector<AttentionSpec> specs_;
};

void EmitH2(const BenchOptions& options, const Emit& emit) {
  constexpr int kSteps = 100000;
  const SelectionPolicy policy;
  const PlannerSetting setting = {&BackendRegistry::Default(), &policy, QueryCpu(), "model"};
  Metrics metrics("bench");
  const auto seconds = [&](bool tells) {
    return MedianSeconds([&] { Steps(setting, &metrics).Run(kSteps, tells); }, options.pairs);
  };
  const double with = seconds(true), without = seconds(false);
  emit({{"row", "H2"},
        {"name", "receipt and metrics of a step with two roles"},
        {"unit", "us"},
        {"without_us", without / kSteps * 1e6},
        {"value", (with - without) / kSteps * 1e6}});
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::Rows rows = denoised::ControlGrowthRows();
  rows.emplace_back("H2", denoised::EmitH2);
  return denoised::RunBench(argc, argv, rows);
}
