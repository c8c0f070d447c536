// What every backend owes: one table of cases, each backend of the registry against float64, on the
// CPU and, where this build and machine have one, on the first CUDA device. A new backend adds
// nothing here. What has not been measured is admitted: this suite is how it is.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/registry.h"
#include "tests/backends/attention_oracle.h"
#include "tests/backends/fp4_oracle.h"

namespace denoised {
namespace {

enum class Masking { kNone, kBoolean, kAdditive, kKeys };
enum class Layout { kContiguous, kPackedQkv, kHeadsFirst, kHeadSizeOutside };

struct Case {
  std::string name;
  DType dtype;
  int64_t batch, q_len, kv_len, heads, head_size;
  Masking masking = Masking::kNone;
  bool causal = false;
  Layout layout = Layout::kContiguous;
  double magnitude = 1;
  double scale = 0;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const std::string prefix = dtype == DType::kFloat32 ? "f32_" : "bf16_";
    const auto add = [&](Case c) {
      c.name = prefix + c.name;
      c.dtype = dtype;
      cases.push_back(std::move(c));
    };
    for (int64_t d : {40, 64, 80, 128}) {
      add({"d" + std::to_string(d), dtype, 1, 333, 333, 2, d});
    }
    for (int64_t s : {1, 2, 15, 64, 65, 128, 129, 517}) {
      add({"s" + std::to_string(s), dtype, 1, s, s, 2, 64});
    }
    add({"d_odd", dtype, 1, 70, 70, 2, 7});
    add({"d_one", dtype, 1, 70, 70, 2, 1});
    add({"d_large", dtype, 1, 70, 70, 1, 256});
    add({"long", dtype, 1, 2500, 2500, 2, 64});
    add({"batch3", dtype, 3, 100, 100, 3, 40});
    add({"cross_short_keys", dtype, 2, 150, 11, 2, 64});
    add({"cross_one_key", dtype, 2, 150, 1, 2, 64});
    add({"cross_long_keys", dtype, 2, 9, 700, 2, 80});
    add({"packed_qkv", dtype, 2, 90, 90, 3, 64, Masking::kNone, false, Layout::kPackedQkv});
    add({"heads_first", dtype, 2, 90, 90, 3, 64, Masking::kNone, false, Layout::kHeadsFirst});
    add({"head_size_outside", dtype, 2, 90, 90, 3, 64, Masking::kNone, false,
         Layout::kHeadSizeOutside});
    add({"huge", dtype, 1, 200, 200, 2, 128, Masking::kNone, false, Layout::kContiguous, 1e4});
    add({"tiny", dtype, 1, 200, 200, 2, 128, Masking::kNone, false, Layout::kContiguous, 1e-4});
    const double level = 1 / std::sqrt(128.0);  // makes scores of the size that 1 makes
    add({"huge_level", dtype, 1, 200, 200, 2, 128, Masking::kNone, false, Layout::kContiguous, 1e4,
         level * 1e-8});
    add({"tiny_level", dtype, 1, 200, 200, 2, 128, Masking::kNone, false, Layout::kContiguous, 1e-4,
         level * 1e8});
    add({"causal", dtype, 2, 140, 140, 2, 64, Masking::kNone, true});
    add({"causal_cross", dtype, 1, 140, 200, 2, 64, Masking::kNone, true});
    add({"mask_bool", dtype, 2, 140, 130, 2, 64, Masking::kBoolean});
    add({"mask_additive", dtype, 2, 140, 130, 2, 64, Masking::kAdditive});
    add({"mask_keys", dtype, 2, 140, 130, 2, 64, Masking::kKeys});
    add({"mask_and_causal", dtype, 2, 140, 140, 2, 64, Masking::kKeys, true});
    add({"custom_scale", dtype, 1, 140, 140, 2, 64, Masking::kNone, false, Layout::kContiguous, 1,
         0.05});
    add({"sharp_scale", dtype, 1, 140, 140, 2, 64, Masking::kNone, false, Layout::kContiguous, 1,
         0.31});
  }
  cases.push_back({"f16_self", DType::kFloat16, 2, 130, 130, 2, 64});
  cases.push_back({"f16_cross", DType::kFloat16, 2, 130, 77, 2, 40});
  return cases;
}

// Three factors of the token count, smallest first, so that tiles have ragged ends.
std::array<int64_t, 3> GridOf(const Case& c) {
  const auto smallest_factor = [](int64_t n) {
    for (int64_t factor = 2; factor * factor <= n; ++factor) {
      if (n % factor == 0) return factor;
    }
    return n;
  };
  if (c.q_len != c.kv_len) return {0, 0, 0};
  const int64_t t = smallest_factor(c.q_len), h = smallest_factor(c.q_len / t);
  return {t, h, c.q_len / t / h};
}

AttentionSpec SpecOf(const Case& c, AttnBackend id) {
  AttentionSpec spec;
  spec.num_heads = c.heads;
  spec.head_size = c.head_size;
  spec.dtype = c.dtype;
  spec.q_len = c.q_len;
  spec.kv_len = c.kv_len;
  spec.grid = GridOf(c);
  spec.has_gate = true;
  spec.causal = c.causal;
  spec.has_mask = c.masking != Masking::kNone;
  spec.custom_scale = c.scale != 0;
  spec.supported = {id};
  return spec;
}

at::Tensor Random(int64_t length, const Case& c, at::Generator generator, at::Device device) {
  const auto dtype = c.dtype == DType::kFloat32    ? at::kFloat
                     : c.dtype == DType::kBFloat16 ? at::kBFloat16
                                                   : at::kHalf;
  const auto draw = [&](std::vector<int64_t> shape) {
    return at::randn(shape, generator, at::kFloat).mul_(c.magnitude).to(dtype).to(device);
  };
  switch (c.layout) {
    case Layout::kContiguous:
      return draw({c.batch, length, c.heads, c.head_size});
    case Layout::kPackedQkv:
      return draw({c.batch, length, 3, c.heads, c.head_size}).select(2, 1);
    case Layout::kHeadsFirst:
      return draw({c.batch, c.heads, length, c.head_size}).permute({0, 2, 1, 3});
    case Layout::kHeadSizeOutside:
      return draw({c.head_size, c.batch, length, c.heads}).permute({1, 2, 3, 0});
  }
  return {};
}

at::Tensor RandomMask(const Case& c, at::Generator generator) {
  const std::vector<int64_t> full = {c.batch, c.heads, c.q_len, c.kv_len};
  const std::vector<int64_t> keys = {c.batch, 1, 1, c.kv_len};
  switch (c.masking) {
    case Masking::kNone:
      return {};
    case Masking::kAdditive:
      return at::randn(full, generator, at::kFloat);
    case Masking::kBoolean:
    case Masking::kKeys: {
      at::Tensor mask =
          at::rand(c.masking == Masking::kKeys ? keys : full, generator, at::kFloat).gt(0.4);
      mask.select(3, 0).fill_(true);  // no row without a key
      return mask;
    }
  }
  return {};
}

// The same values on every device.
AttentionInputs InputsOf(const Case& c, at::Device device) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(20260101);
  AttentionInputs inputs;
  inputs.query = Random(c.q_len, c, generator, device);
  inputs.key = Random(c.kv_len, c, generator, device);
  inputs.value = Random(c.kv_len, c, generator, device);
  if (c.q_len == c.kv_len) inputs.gate = Random(c.q_len, c, generator, device);
  inputs.mask = RandomMask(c, generator);
  if (inputs.mask.defined()) inputs.mask = inputs.mask.to(device);
  inputs.causal = c.causal;
  inputs.scale = c.scale != 0 ? c.scale : 1.0 / std::sqrt(static_cast<double>(c.head_size));
  return inputs;
}

// Defaults, but for one backend whose dropped queries copy other queries' outputs: that is no
// attention over pairs, and golden_vectors_test has it.
std::string ParametersOf(AttnBackend id) {
  return id == AttnBackend::kBsaAttn ? R"({"query_keep_ratio": 1})" : "";
}

std::shared_ptr<const AttentionMetadata> MetadataOf(const AttentionBackend& backend,
                                                    const Case& c) {
  auto builder = backend.MakeBuilder();
  if (builder == nullptr) return nullptr;
  return builder->Build({0, 1, SpecOf(c, backend.id()), ParametersOf(backend.id())});
}

at::Tensor Attend(const AttentionBackend& backend, const Case& c, const AttentionInputs& inputs) {
  return backend.Forward(inputs, MetadataOf(backend, c).get());
}

// Float64 attention over the pairs that the backend says it attends, and what it adds to them.
at::Tensor Wanted(const AttentionBackend& backend, const Case& c, const AttentionInputs& inputs) {
  const auto metadata = MetadataOf(backend, c);
  AttentionInputs masked = InputsOf(c, at::kCPU);
  const at::Tensor pairs = backend.AttendedPairs(inputs, metadata.get());
  if (pairs.defined()) masked.mask = pairs.cpu();
  const at::Tensor branch = backend.AddedBranch(inputs, metadata.get());
  const at::Tensor want = OracleAttention(masked);
  return branch.defined() ? want + branch.cpu().to(at::kDouble) : want;
}

// LibTorch takes an additive mask in the dtype of the queries: one more rounding, in nats.
double RoundedMask(const Case& c) {
  return c.masking == Masking::kAdditive && c.dtype != DType::kFloat32 ? 4.0 / 3 : 1;
}

void ExpectClose(const at::Tensor& got, const at::Tensor& want, const AttentionBackend& backend,
                 const Case& c) {
  // With scores near 1e8 softmax only picks the largest, and fewer bits cannot tell which that is.
  if (backend.numerics() != Numerics::kExact && c.magnitude > 1 && c.scale == 0) return;
  // The scales of FP4 are e4m3, from 2^-9 to 448. And 4 bits of a query are off by a sixteenth,
  // which a scale far above D^-0.5 turns into other weights.
  if (backend.numerics() == Numerics::kFp4 &&
      (c.magnitude != 1 || c.scale * std::sqrt(c.head_size) > 1)) {
    return;
  }
  switch (backend.numerics()) {
    case Numerics::kExact:
      EXPECT_LE(RelativeL2(got, want), ExactTolerance(got.scalar_type()) * RoundedMask(c));
      break;
    case Numerics::kInt8:
      EXPECT_GE(CosineSimilarity(got, want), 0.999);
      break;
    case Numerics::kFp4:
      EXPECT_GE(CosineSimilarity(got, want), 0.98);
      break;
  }
}

// Four bits are far from exact attention, and bit for bit near their own formula: only a sum's
// order differs, and that the output is rounded to its dtype.
void ExpectFp4Formula(const at::Tensor& got, AttnBackend id, const AttentionInputs& inputs) {
  const at::Tensor want =
      OracleFp4Attention(inputs, id == AttnBackend::kSageAttnThree).to(got.scalar_type());
  const at::Tensor difference = got.to(at::kDouble) - want.to(at::kDouble);
  EXPECT_LE(difference.norm().item<double>(), 1e-6 * want.to(at::kDouble).norm().item<double>());
}

// at::empty gives NaN for as long as this lives, so that an element nobody wrote shows.
class PoisonedMemory {
 public:
  PoisonedMemory() { Set(true); }
  ~PoisonedMemory() { Set(false); }

 private:
  static void Set(bool on) {
    at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(on);
  }
};

struct Pair {
  AttnBackend id;
  Case c;
  at::Device device;
};

const BackendRegistry& Registry() { return BackendRegistry::WithUnmeasured(); }

void PrintTo(const Pair& pair, std::ostream* out) {
  *out << AttnBackendName(pair.id) << " " << pair.c.name;
}

std::vector<Pair> SupportedPairs(at::Device device, const DeviceInfo& info) {
  std::vector<Pair> pairs;
  for (const BackendRegistry::Entry& entry : Registry().entries()) {
    for (const Case& c : Cases()) {
      const auto why_not = Registry().WhyNot(entry.id, SpecOf(c, entry.id), info);
      if (!why_not) pairs.push_back({entry.id, c, device});
    }
  }
  return pairs;
}

std::vector<Pair> CpuPairs() { return SupportedPairs(at::kCPU, QueryCpu()); }

// Empty where there is no device; `*why_not` then says why.
std::vector<Pair> CudaPairs(std::string* why_not = nullptr) {
  try {
    return SupportedPairs(at::Device(at::kCUDA, 0), QueryCuda(0));
  } catch (const Error& error) {
    if (why_not != nullptr) *why_not = error.what();
    return {};
  }
}

std::string PairName(const ::testing::TestParamInfo<Pair>& info) {
  return std::string(AttnBackendName(info.param.id)) + "__" + info.param.c.name;
}

class Contract : public ::testing::TestWithParam<Pair> {
 protected:
  const Case& c_ = GetParam().c;
  const at::Device device_ = GetParam().device;
  const AttentionBackend& backend_ = *Registry().Find(GetParam().id)->backend;
};

TEST_P(Contract, EqualsFloat64AndWritesEveryElement) {
  const AttentionInputs inputs = InputsOf(c_, device_);
  const at::Tensor want = Wanted(backend_, c_, inputs);
  const PoisonedMemory poisoned;
  const at::Tensor got = Attend(backend_, c_, inputs);
  EXPECT_EQ(got.scalar_type(), inputs.query.scalar_type());
  EXPECT_EQ(got.sizes(), inputs.query.sizes());
  EXPECT_TRUE(got.is_contiguous());
  EXPECT_TRUE(got.isfinite().all().item<bool>());
  ExpectClose(got.cpu(), want, backend_, c_);
  if (backend_.numerics() == Numerics::kFp4) ExpectFp4Formula(got, backend_.id(), inputs);
}

TEST_P(Contract, LeavesItsInputsAlone) {
  const AttentionInputs inputs = InputsOf(c_, device_), before = InputsOf(c_, device_);
  Attend(backend_, c_, inputs);
  EXPECT_TRUE(SameBits(inputs.query.cpu(), before.query.cpu()));
  EXPECT_TRUE(SameBits(inputs.key.cpu(), before.key.cpu()));
  EXPECT_TRUE(SameBits(inputs.value.cpu(), before.value.cpu()));
}

TEST_P(Contract, ARowIsTheSameBitsWhateverElseIsInTheBatch) {
  Case several = c_;
  several.batch = std::max<int64_t>(3, c_.batch);  // a batch of one would be compared with itself
  const AttentionInputs inputs = InputsOf(several, device_);
  const at::Tensor together = Attend(backend_, several, inputs).cpu();
  for (int64_t index = 0; index < several.batch; ++index) {
    const auto row = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, index, 1) : x; };
    AttentionInputs alone = inputs;
    for (at::Tensor* x : {&alone.query, &alone.key, &alone.value, &alone.mask, &alone.gate}) {
      *x = row(*x);
    }
    EXPECT_TRUE(SameBits(Attend(backend_, several, alone).cpu(), row(together))) << "row " << index;
  }
}

TEST_P(Contract, TheBitsDoNotDependOnTheThreadCount) {
  const AttentionInputs inputs = InputsOf(c_, device_);
  const at::Tensor some = Attend(backend_, c_, inputs);
  const int before = IntraOpThreads();
  for (const int threads : {1, 2, 5}) {
    SetIntraOpThreads(threads);
    EXPECT_TRUE(SameBits(some.cpu(), Attend(backend_, c_, inputs).cpu())) << threads << " threads";
  }
  SetIntraOpThreads(before);
}

// Keys of which the last ones are alike, as a padded prompt's: whoever is told may take one of them
// for all, and nothing else changes.
TEST_P(Contract, KeysThatAreAlikeMayCountAsOne) {
  for (const int64_t from : {int64_t{0}, c_.kv_len / 3, c_.kv_len - 1}) {
    AttentionInputs inputs = InputsOf(c_, device_);
    for (at::Tensor* x : {&inputs.key, &inputs.value}) {
      *x = x->clone();
      x->narrow(1, from, c_.kv_len - from).copy_(x->narrow(1, from, 1).clone());
    }
    AttentionInputs told = inputs;
    told.alike_from.assign(inputs.query.size(0), from);
    const at::Tensor plain = Attend(backend_, c_, inputs), got = Attend(backend_, c_, told);
    if (backend_.id() != AttnBackend::kFlashAttn) {
      EXPECT_TRUE(SameBits(got.cpu(), plain.cpu())) << from;
      continue;
    }
    AttentionInputs on_cpu = inputs;
    for (at::Tensor* x : {&on_cpu.query, &on_cpu.key, &on_cpu.value, &on_cpu.mask}) {
      if (x->defined()) *x = x->cpu();
    }
    ExpectClose(got.cpu(), OracleAttention(on_cpu), backend_, c_);
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Contract, ::testing::ValuesIn(CpuPairs()), PairName);
INSTANTIATE_TEST_SUITE_P(Cuda, Contract, ::testing::ValuesIn(CudaPairs()), PairName);

// A backend that refused every case would pass all of the above.
void ExpectManyCases(const std::vector<Pair>& pairs, const std::set<AttnBackend>& elsewhere) {
  std::map<AttnBackend, int> served;
  for (const Pair& pair : pairs) ++served[pair.id];
  for (const BackendRegistry::Entry& entry : Registry().entries()) {
    if (entry.backend == nullptr || elsewhere.count(entry.id) > 0) continue;
    EXPECT_GE(served[entry.id], 10) << AttnBackendName(entry.id);
  }
}

TEST(ContractTable, EveryBackendOfThisBuildServesManyCases) {
  ExpectManyCases(CpuPairs(), {AttnBackend::kNoAttention, AttnBackend::kCudnnAttn});
}

TEST(ContractTable, EveryBackendOfTheCudaBuildServesManyCasesThere) {
  std::string why_not;
  const std::vector<Pair> pairs = CudaPairs(&why_not);
  if (!why_not.empty()) GTEST_SKIP() << why_not;
  ExpectManyCases(
      pairs, {AttnBackend::kNoAttention, AttnBackend::kSageAttnThree, AttnBackend::kAttnQatInfer});
}

}  // namespace
}  // namespace denoised
