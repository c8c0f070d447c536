// One element of q, k or v that is not finite, on every backend of the CPU and of the first CUDA
// device: what float64 attention over the attended pairs makes of it, the backend must make of it.
// Nothing is lost on the way, nor spread to rows that do not attend it.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/registry.h"

namespace denoised {
namespace {

constexpr int64_t kTokens = 130, kHeads = 2, kHeadSize = 64;
constexpr int64_t kToken = 37, kHead = 1, kElement = 5;  // where the element is

struct Fault {
  AttnBackend id;
  DType dtype;
  char operand;  // q, k or v
  float element;
  at::Device device;
};

const BackendRegistry& Registry() { return BackendRegistry::WithUnmeasured(); }

AttentionSpec SpecOf(const Fault& fault) {
  AttentionSpec spec;
  spec.num_heads = kHeads;
  spec.head_size = kHeadSize;
  spec.dtype = fault.dtype;
  spec.q_len = spec.kv_len = kTokens;
  spec.grid = {2, 5, 13};
  spec.has_gate = true;
  spec.supported = {fault.id};
  return spec;
}

std::vector<Fault> FaultsOn(at::Device device, const DeviceInfo& info) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<Fault> faults;
  for (const BackendRegistry::Entry& entry : Registry().entries()) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (char operand : {'q', 'k', 'v'}) {
        for (float element : {std::nanf(""), inf, -inf}) {
          const Fault fault{entry.id, dtype, operand, element, device};
          if (Registry().WhyNot(entry.id, SpecOf(fault), info)) continue;
          faults.push_back(fault);
        }
      }
    }
  }
  return faults;
}

std::vector<Fault> CudaFaults() {
  try {
    return FaultsOn(at::Device(at::kCUDA, 0), QueryCuda(0));
  } catch (const Error&) {
    return {};
  }
}

std::string FaultName(const ::testing::TestParamInfo<Fault>& info) {
  const Fault& fault = info.param;
  const std::string element = std::isnan(fault.element) ? "nan"
                              : fault.element > 0       ? "inf"
                                                        : "minus_inf";
  return std::string(AttnBackendName(fault.id)) +
         (fault.dtype == DType::kFloat32 ? "__f32_" : "__bf16_") + fault.operand + "_" + element;
}

AttentionInputs InputsOf(const Fault& fault) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const auto draw = [&](char operand) {
    at::Tensor x = at::randn({1, kTokens, kHeads, kHeadSize}, generator, at::kFloat);
    if (operand == fault.operand) x[0][kToken][kHead][kElement] = fault.element;
    return (fault.dtype == DType::kFloat32 ? x : x.to(at::kBFloat16)).to(fault.device);
  };
  AttentionInputs inputs;
  inputs.query = draw('q');
  inputs.key = draw('k');
  inputs.value = draw('v');
  inputs.gate = draw('g');
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(kHeadSize));
  return inputs;
}

// Float64 attention [S, H, D] to which pairs that are not attended add nothing, not even 0 * NaN.
at::Tensor Oracle(const AttentionInputs& inputs, const at::Tensor& pairs) {
  const auto heads_first = [](const at::Tensor& x) { return x[0].to(at::kDouble).transpose(0, 1); };
  const at::Tensor hidden =
      pairs.defined() ? pairs[0].logical_not() : at::zeros({1, 1, 1}, at::kBool);
  const at::Tensor scores =
      at::matmul(heads_first(inputs.query), heads_first(inputs.key).transpose(1, 2)) * inputs.scale;
  const at::Tensor weights =
      at::softmax(scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor terms = weights.unsqueeze(3) * heads_first(inputs.value).unsqueeze(1);
  return terms.masked_fill(hidden.unsqueeze(3), 0.0).sum(2).transpose(0, 1);
}

class NotFinite : public ::testing::TestWithParam<Fault> {
 protected:
  NotFinite() {
    const Fault& fault = GetParam();
    const std::string parameters =
        fault.id == AttnBackend::kBsaAttn ? R"({"query_keep_ratio": 1})" : "";
    auto builder = backend_.MakeBuilder();
    if (builder != nullptr) metadata_ = builder->Build({0, 1, SpecOf(fault), parameters});
    got_ = backend_.Forward(inputs_, metadata_.get())[0].cpu().to(at::kDouble);
    want_ = Oracle(InputsOf({fault.id, fault.dtype, fault.operand, fault.element, at::kCPU}),
                   backend_.AttendedPairs(inputs_, metadata_.get()));
    const at::Tensor branch = backend_.AddedBranch(inputs_, metadata_.get());
    if (branch.defined()) want_ = want_ + branch[0].cpu().to(at::kDouble);
  }

  // LibTorch's float32 kernel for CUDA multiplies numbers in parts: what they lack is NaN.
  static bool SplitsOperands() {
    const Fault& fault = GetParam();
    return fault.device.is_cuda() && fault.id == AttnBackend::kTorchSdpa &&
           fault.dtype == DType::kFloat32;
  }

  const AttentionBackend& backend_ = *Registry().Find(GetParam().id)->backend;
  const AttentionInputs inputs_ = InputsOf(GetParam());
  std::shared_ptr<const AttentionMetadata> metadata_;
  at::Tensor got_, want_;  // [S, H, D]
};

TEST_P(NotFinite, StaysNotFiniteWhereTheOracleSaysSo) {
  EXPECT_FALSE(want_.isfinite().all().item<bool>());
  if (backend_.numerics() == Numerics::kExact && !SplitsOperands()) {
    EXPECT_TRUE(got_.isnan().equal(want_.isnan()))
        << got_.isnan().sum() << " NaN, wanted " << want_.isnan().sum();
    EXPECT_TRUE(got_.isinf().equal(want_.isinf()))
        << got_.isinf().sum() << " infinite, wanted " << want_.isinf().sum();
    return;
  }
  // Fewer bits share scales: there a group, a block or a head may be lost with its element, but no
  // other head, and nothing that the oracle loses is kept. Parts of an infinity are not numbers.
  EXPECT_FALSE(got_.isfinite().logical_and(want_.isfinite().logical_not()).any().item<bool>());
  EXPECT_TRUE(got_.select(1, 1 - kHead).isfinite().all().item<bool>());
}

// With its default ratio half of a tile's queries get a neighbour's output; a bad one never does.
TEST(BsaNotFinite, ABadQueryShowsWhereverInItsTileItIs) {
  const AttentionBackend& backend = *Registry().Find(AttnBackend::kBsaAttn)->backend;
  Fault fault{AttnBackend::kBsaAttn, DType::kFloat32, 'v', 0, at::kCPU};
  AttentionSpec spec = SpecOf(fault);
  spec.grid = {4, 4, 8};
  spec.q_len = spec.kv_len = 128;
  const auto metadata = backend.MakeBuilder()->Build({0, 1, spec, ""});
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    for (int64_t token = 0; token < 128; ++token) {
      AttentionInputs inputs = InputsOf(fault);
      for (at::Tensor* x : {&inputs.query, &inputs.key, &inputs.value, &inputs.gate}) {
        *x = x->narrow(1, 0, 128).clone();
      }
      inputs.query[0][token][kHead][kElement] = bad;
      const at::Tensor out = backend.Forward(inputs, metadata.get())[0];
      EXPECT_TRUE(out[token][kHead].isnan().all().item<bool>()) << bad << " at " << token;
      EXPECT_FALSE(out.select(1, 1 - kHead).isnan().any().item<bool>()) << bad << " at " << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, NotFinite, ::testing::ValuesIn(FaultsOn(at::kCPU, QueryCpu())),
                         FaultName);
INSTANTIATE_TEST_SUITE_P(Cuda, NotFinite, ::testing::ValuesIn(CudaFaults()), FaultName);

// Keys that count as one (AttentionInputs::alike_from) lose nothing either.
TEST(NotFiniteAlikeTest, IsWhereItIsWithAllTheKeys) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const AttentionBackend& flash = *Registry().Find(AttnBackend::kFlashAttn)->backend;
  const int64_t from = 70;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [in_values, element] : {std::pair{true, kInf},
                                             {true, std::nanf("")},
                                             {false, kInf},
                                             {false, -kInf},
                                             {false, std::nanf("")}}) {
      for (const bool everywhere : {false, true}) {
        AttentionInputs inputs;
        const auto draw = [&] {
          at::Tensor x = at::randn({1, kTokens, kHeads, kHeadSize}).abs();
          x.narrow(1, from, kTokens - from).copy_(x.narrow(1, from, 1).clone());
          return x;
        };
        inputs.query = draw().to(dtype);
        at::Tensor key = draw(), value = draw();
        at::Tensor& odd = in_values ? value : key;
        odd.narrow(1, everywhere ? 0 : from, everywhere ? kTokens : kTokens - from)
            .select(3, kElement)
            .fill_(element);
        inputs.key = key.to(dtype);
        inputs.value = value.to(dtype);
        const at::Tensor plain = flash.Forward(inputs, nullptr);
        inputs.alike_from = {from};
        const at::Tensor told = flash.Forward(inputs, nullptr);
        EXPECT_TRUE(told.isnan().equal(plain.isnan())) << in_values << element << everywhere;
        EXPECT_TRUE(told.isinf().equal(plain.isinf())) << in_values << element << everywhere;
        // Keys that are -inf are passed over, unless all are.
        const bool shows = in_values || element != -kInf || everywhere;
        EXPECT_NE(plain.isfinite().all().item<bool>(), shows) << in_values << element << everywhere;
      }
    }
  }
}

}  // namespace
}  // namespace denoised
