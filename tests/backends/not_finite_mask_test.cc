// One element of q, k or v that is not finite where masks, causal order and sparse choices hide
// pairs: a row that attends it has what float64 attention over its attended pairs makes of it, and
// no other row has anything of it, nor has another row of the batch.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "backends/attention_backend.h"
#include "backends/registry.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2;
constexpr int64_t kFaultRow = 0, kFaultHead = 1, kFaultElement = 5;
constexpr double kInf = std::numeric_limits<double>::infinity();

enum class Hiding { kNothing, kCausal, kKeys, kPairs, kAdditive, kKeysAndCausal };

struct HidingCase {
  AttnBackend id;
  DType dtype;
  Hiding hiding;
  int64_t q_len, kv_len, head_size;
};

struct Fault {
  char operand;  // q, k or v
  int64_t token;
  double element;
};

const BackendRegistry& Registry() { return BackendRegistry::WithUnmeasured(); }

bool IsCausal(Hiding hiding) {
  return hiding == Hiding::kCausal || hiding == Hiding::kKeysAndCausal;
}

AttentionSpec SpecOf(const HidingCase& c) {
  AttentionSpec spec;
  spec.num_heads = kHeads;
  spec.head_size = c.head_size;
  spec.dtype = c.dtype;
  spec.q_len = c.q_len;
  spec.kv_len = c.kv_len;
  if (c.q_len == 77) spec.grid = {1, 7, 11};
  if (c.q_len == 70) spec.grid = {2, 5, 7};
  spec.causal = IsCausal(c.hiding);
  spec.has_mask = c.hiding != Hiding::kNothing && c.hiding != Hiding::kCausal;
  spec.has_gate = true;
  spec.supported = {c.id};
  return spec;
}

// Of the sparse ones: so few blocks that every query has hidden keys.
std::string ParametersOf(AttnBackend id) {
  static const std::map<AttnBackend, std::string> parameters = {
      {AttnBackend::kVideoSparseAttn, R"({"tile": [1, 4, 4], "top_k": 2})"},
      {AttnBackend::kSlidingTileAttn, R"({"tile": [1, 4, 4], "window": [1, 1, 1]})"},
      {AttnBackend::kVmobaAttn, R"({"chunk": [1, 4, 4], "threshold": 0.1})"},
      {AttnBackend::kSlaAttn, R"({"ratio": 0.3, "block_q": 32, "block_k": 16})"},
      {AttnBackend::kSageSlaAttn, R"({"ratio": 0.3, "block_q": 32, "block_k": 16})"},
      {AttnBackend::kBsaAttn,
       R"({"query_keep_ratio": 1, "kv_cumulative_threshold": 0.2, "min_kv_blocks": 1})"},
      {AttnBackend::kNablaAttn, R"({"P": 0.2})"}};
  const auto found = parameters.find(id);
  return found == parameters.end() ? "" : found->second;
}

bool IsSparse(AttnBackend id) { return !ParametersOf(id).empty(); }

std::vector<HidingCase> Cases() {
  std::vector<HidingCase> cases;
  for (const BackendRegistry::Entry& entry : Registry().entries()) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const Hiding hiding : {Hiding::kNothing, Hiding::kCausal, Hiding::kKeys, Hiding::kPairs,
                                  Hiding::kAdditive, Hiding::kKeysAndCausal}) {
        // Elsewhere float16 is float32's kernel.
        if (entry.id != AttnBackend::kTorchSdpa && dtype == DType::kFloat16) continue;
        for (const auto& [q_len, kv_len, head_size] :
             {std::array<int64_t, 3>{77, 77, 64}, {70, 70, 128}, {9, 71, 64}}) {
          const HidingCase c{entry.id, dtype, hiding, q_len, kv_len, head_size};
          if (!Registry().WhyNot(entry.id, SpecOf(c), QueryCpu())) cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

std::string CaseName(const ::testing::TestParamInfo<HidingCase>& info) {
  const HidingCase& c = info.param;
  const char* const names[] = {"nothing", "causal", "keys", "pairs", "additive", "keys_and_causal"};
  return std::string(AttnBackendName(c.id)) + "__" + std::string(DTypeName(c.dtype)) + "_" +
         names[static_cast<int>(c.hiding)] + "_" + std::to_string(c.q_len) + "x" +
         std::to_string(c.kv_len) + "x" + std::to_string(c.head_size);
}

// Which pairs the mask leaves, bool [B, H, S_q, S_kv]; each query keeps key 0. Prompts of other
// lengths in kKeys.
at::Tensor VisiblePairs(const HidingCase& c) {
  at::Tensor pairs = at::ones({kBatch, kHeads, c.q_len, c.kv_len}, at::kBool);
  if (c.hiding == Hiding::kKeys || c.hiding == Hiding::kKeysAndCausal) {
    pairs[0].narrow(2, c.kv_len - 20, 20).fill_(false);
    pairs[1].narrow(2, c.kv_len - 7, 7).fill_(false);
  } else if (c.hiding == Hiding::kPairs || c.hiding == Hiding::kAdditive) {
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(5);
    pairs = at::rand(pairs.sizes(), generator, at::kFloat).gt(0.4);
    pairs.select(2, 4).fill_(false);  // a query of one key
    pairs.select(3, 0).fill_(true);
  }
  return pairs;
}

at::Tensor MaskOf(const HidingCase& c) {
  const at::Tensor pairs = VisiblePairs(c);
  switch (c.hiding) {
    case Hiding::kNothing:
    case Hiding::kCausal:
      return {};
    case Hiding::kAdditive:
      return at::zeros(pairs.sizes(), at::kFloat).masked_fill(pairs.logical_not(), -kInf);
    case Hiding::kPairs:
      return pairs;
    case Hiding::kKeys:
    case Hiding::kKeysAndCausal:
      return pairs.narrow(1, 0, 1).narrow(2, 0, 1);
  }
  return {};
}

AttentionInputs InputsOf(const HidingCase& c, const Fault& fault) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const auto dtype = c.dtype == DType::kFloat32    ? at::kFloat
                     : c.dtype == DType::kBFloat16 ? at::kBFloat16
                                                   : at::kHalf;
  const auto draw = [&](char operand, int64_t length) {
    at::Tensor x = at::randn({kBatch, length, kHeads, c.head_size}, generator, at::kFloat);
    if (operand == fault.operand)
      x[kFaultRow][fault.token][kFaultHead][kFaultElement] = fault.element;
    return x.to(dtype);
  };
  AttentionInputs inputs;
  inputs.query = draw('q', c.q_len);
  inputs.key = draw('k', c.kv_len);
  inputs.value = draw('v', c.kv_len);
  if (c.q_len == c.kv_len) inputs.gate = draw('g', c.q_len);
  inputs.mask = MaskOf(c);
  inputs.causal = IsCausal(c.hiding);
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  return inputs;
}

// Float64 attention over `pairs`, bool [B, H, S_q, S_kv]: [B, S_q, H, D]. Values of hidden pairs
// are in no sum, not even times zero.
at::Tensor Oracle(const AttentionInputs& inputs, const at::Tensor& pairs) {
  const auto heads_first = [](const at::Tensor& x) { return x.to(at::kDouble).transpose(1, 2); };
  const at::Tensor values = heads_first(inputs.value);
  const at::Tensor scores =
      at::matmul(heads_first(inputs.query), heads_first(inputs.key).transpose(2, 3)) * inputs.scale;
  const at::Tensor weights = at::softmax(scores.masked_fill(pairs.logical_not(), -kInf), -1);
  const at::Tensor finite = values.masked_fill(values.isfinite().logical_not(), 0.0);
  at::Tensor out = at::matmul(weights.masked_fill(pairs.logical_not(), 0.0), finite);
  const at::Tensor odd = values.isfinite().logical_not().nonzero();
  for (int64_t i = 0; i < odd.size(0); ++i) {
    const int64_t b = odd[i][0].item<int64_t>(), h = odd[i][1].item<int64_t>(),
                  key = odd[i][2].item<int64_t>(), d = odd[i][3].item<int64_t>();
    const at::Tensor term = weights[b][h].select(1, key) * values[b][h][key][d];
    out[b][h].select(1, d).add_(term.masked_fill(pairs[b][h].select(1, key).logical_not(), 0.0));
  }
  return out.transpose(1, 2);
}

class NotFiniteMask : public ::testing::TestWithParam<HidingCase> {
 protected:
  NotFiniteMask() {
    auto builder = backend_.MakeBuilder();
    if (builder == nullptr) return;
    metadata_ = builder->Build({0, 1, SpecOf(c_), ParametersOf(c_.id)});
  }

  at::Tensor Attend(const AttentionInputs& inputs) const {
    return backend_.Forward(inputs, metadata_.get());
  }

  at::Tensor PairsOf(const AttentionInputs& inputs) const {
    at::Tensor pairs = VisiblePairs(c_);
    if (inputs.causal) pairs = pairs.tril();
    const at::Tensor chosen = backend_.AttendedPairs(inputs, metadata_.get());
    return chosen.defined() ? pairs.logical_and(chosen) : pairs;
  }

  at::Tensor Wanted(const AttentionInputs& inputs) const {
    const at::Tensor want = Oracle(inputs, PairsOf(inputs));
    const at::Tensor branch = backend_.AddedBranch(inputs, metadata_.get());
    return branch.defined() ? want + branch.to(at::kDouble) : want;
  }

  // From the start, the middle and the end, where masks and causal order hide most.
  std::vector<Fault> Faults() const {
    std::vector<Fault> faults;
    for (const char operand : {'q', 'k', 'v'}) {
      const int64_t length = operand == 'q' ? c_.q_len : c_.kv_len;
      for (const int64_t token : {int64_t{0}, length / 3, length - 3}) {
        for (const double element : {std::nan(""), kInf, -kInf}) {
          faults.push_back({operand, token, element});
        }
      }
    }
    return faults;
  }

  // Exact backends lose what the oracle loses and nothing else. Fewer bits share scales: there a
  // head of the batch row may be lost with its element, and nothing that the oracle loses is kept.
  void ExpectAsWanted(const at::Tensor& got, const at::Tensor& want) const {
    if (backend_.numerics() != Numerics::kExact) {
      EXPECT_FALSE(got.isfinite().logical_and(want.isfinite().logical_not()).any().item<bool>());
      EXPECT_TRUE(got.select(2, 1 - kFaultHead).isfinite().all().item<bool>());
      return;
    }
    EXPECT_TRUE(got.isnan().equal(want.isnan()))
        << got.isnan().sum().item<int64_t>() << " NaN, wanted "
        << want.isnan().sum().item<int64_t>();
    EXPECT_TRUE(got.isinf().logical_and(got.gt(0)).equal(want.isinf().logical_and(want.gt(0))));
    EXPECT_TRUE(got.isinf().equal(want.isinf()));
    const at::Tensor finite = got.isfinite().logical_and(want.isfinite());
    EXPECT_LE(RelativeL2(got.masked_select(finite), want.masked_select(finite)),
              ExactTolerance(got.scalar_type()));
  }

  const HidingCase& c_ = GetParam();
  const AttentionBackend& backend_ = *Registry().Find(c_.id)->backend;
  std::shared_ptr<const AttentionMetadata> metadata_;
};

TEST_P(NotFiniteMask, WhatIsHiddenAddsNothing) {
  const at::Tensor clean = Attend(InputsOf(c_, {' ', 0, 0}));
  for (const Fault& fault : Faults()) {
    SCOPED_TRACE(std::string(1, fault.operand) + " " + std::to_string(fault.token) + " " +
                 std::to_string(fault.element));
    const AttentionInputs inputs = InputsOf(c_, fault);
    const at::Tensor got = Attend(inputs);
    ExpectAsWanted(got, Wanted(inputs));
    EXPECT_TRUE(SameBits(got[1 - kFaultRow], clean[1 - kFaultRow]));
  }
}

// A sparse backend that chose everything would have nothing hidden.
TEST_P(NotFiniteMask, SomethingIsHidden) {
  if (!IsSparse(c_.id) && c_.hiding == Hiding::kNothing) return;
  EXPECT_FALSE(PairsOf(InputsOf(c_, {' ', 0, 0})).all().item<bool>());
}

// Masks also hide by the least number instead of -inf: what has no other pair attends all alike.
TEST_P(NotFiniteMask, ARowUnderTheLeastNumberAttendsAll) {
  // float16's least number leaves scores their differences.
  if (c_.hiding != Hiding::kAdditive || IsSparse(c_.id) || c_.dtype == DType::kFloat16) return;
  AttentionInputs inputs = InputsOf(c_, {' ', 0, 0});
  inputs.mask = at::zeros_like(inputs.mask);
  inputs.mask.select(2, 3).fill_(-3.38e38);
  const at::Tensor got = Attend(inputs).select(1, 3);
  const at::Tensor want = inputs.value.to(at::kDouble).mean(1);
  const bool exact = backend_.numerics() == Numerics::kExact;
  EXPECT_LE(RelativeL2(got, want), exact ? 2 * ExactTolerance(got.scalar_type()) : 0.1);
}

INSTANTIATE_TEST_SUITE_P(Cpu, NotFiniteMask, ::testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace denoised
