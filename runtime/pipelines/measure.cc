#include "runtime/pipelines/measure.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "backends/attention_backend.h"
#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/pipelines/tensor_convert.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr uint64_t kSeed = 20261126;
constexpr int64_t kErrorQueries = 64;
constexpr double kMostError = 1e30;  // that a table's JSON has
constexpr int kSamples = 5;
constexpr double kLeastSample = 0.002;  // seconds: shorter calls are repeated

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// Of a dense call: about a second of a CPU, some milliseconds of a card.
double GoodMultiplyAdds(const DeviceInfo& device) {
  return device.type == DeviceInfo::Type::kCpu ? 4e10 : 4e12;
}

// Of query, key and value.
int64_t InputBytes(const AttentionSpec& spec, int64_t rows) {
  return rows * spec.num_heads * spec.head_size * (spec.q_len + 2 * spec.kv_len) *
         static_cast<int64_t>(DTypeSize(spec.dtype));
}

AttentionSpec WithFewerHeads(const MeasureShape& shape, const DeviceInfo& device,
                             const MeasureLimits& limits) {
  AttentionSpec spec = shape.spec;
  if (spec.q_len < 1 || spec.kv_len < 1) {
    throw Error(StatusCode::kInvalidArgument, "a call without queries or keys is not measured");
  }
  const auto within = [&](double multiply_adds, int64_t bytes) {
    return DenseMultiplyAdds(spec, shape.rows) <= multiply_adds &&
           InputBytes(spec, shape.rows) <= bytes;
  };
  const double good = GoodMultiplyAdds(device);
  while (spec.num_heads > 1 && !within(good, limits.most_bytes / 4)) {
    spec.num_heads = (spec.num_heads + 1) / 2;
  }
  if (within(good * limits.most_seconds, limits.most_bytes / 2)) return spec;
  throw Error(StatusCode::kResourceExhausted,
              "a call of " + std::to_string(spec.q_len) + " queries and " +
                  std::to_string(spec.kv_len) + " keys is too large to be measured",
              "", "MEMORY");
}

at::Device DeviceOf(const DeviceInfo& device) {
  if (device.type == DeviceInfo::Type::kCpu) return at::kCPU;
  return {at::kCUDA, static_cast<at::DeviceIndex>(device.index)};
}

// Numbers of deviation 1, in a call's dtype and on its device.
class Normal {
 public:
  Normal(DType dtype, const DeviceInfo& device)
      : dtype_(ToScalarType(dtype)),
        device_(DeviceOf(device)),
        generator_(at::detail::createCPUGenerator(kSeed)) {}
  at::Tensor operator()(at::IntArrayRef sizes) {
    return at::randn(sizes, generator_, at::TensorOptions(at::kFloat)).to(device_, dtype_);
  }
  at::Device device() const { return device_; }

 private:
  const at::ScalarType dtype_;
  const at::Device device_;
  const at::Generator generator_;
};

at::Tensor EighthHidden(int64_t keys, at::Device device) {
  const int64_t seen = std::max<int64_t>(1, keys - keys / 8);
  return at::arange(keys, at::TensorOptions(device).dtype(at::kLong))
      .lt(seen)
      .view({1, 1, 1, keys});
}

AttentionInputs MakeInputs(const AttentionSpec& spec, int64_t rows, const DeviceInfo& device) {
  Normal normal(spec.dtype, device);
  AttentionInputs in;
  in.query = normal({rows, spec.q_len, spec.num_heads, spec.head_size});
  in.key = normal({rows, spec.kv_len, spec.num_heads, spec.head_size});
  in.value = normal({rows, spec.kv_len, spec.num_heads, spec.head_size});
  if (spec.has_gate) in.gate = normal(in.query.sizes());
  if (spec.has_projection) {
    in.projection = normal({spec.head_size, spec.head_size});
    in.projection_bias = normal({spec.head_size});
  }
  if (spec.has_mask) in.mask = EighthHidden(spec.kv_len, normal.device());
  in.scale = 1 / std::sqrt(static_cast<double>(spec.head_size));
  in.causal = spec.causal;
  return in;
}

// Of queries, evenly spread.
at::Tensor SomeOf(int64_t queries, at::Device device) {
  return at::linspace(0, static_cast<double>(queries - 1), std::min(kErrorQueries, queries),
                      at::kDouble)
      .round()
      .to(device, at::kLong);
}

// The same call for some of its queries, in float32, so that REFERENCE rounds no further. Which
// keys a causal one sees is a mask then.
AttentionInputs CallOf(const AttentionInputs& inputs, const at::Tensor& some) {
  AttentionInputs few = inputs;
  few.query = inputs.query.index_select(1, some).to(at::kFloat);
  few.key = inputs.key.to(at::kFloat);
  few.value = inputs.value.to(at::kFloat);
  few.gate = few.projection = few.projection_bias = at::Tensor();
  if (!inputs.causal) return few;
  const at::Tensor keys = at::arange(inputs.key.size(1), some.options());
  const at::Tensor sees = keys.unsqueeze(0).le(some.unsqueeze(1)).unsqueeze(0).unsqueeze(0);
  few.mask = inputs.mask.defined() ? sees.logical_and(inputs.mask) : sees;
  few.causal = false;
  return few;
}

// Waits for the device: a number of the last result is read.
void Await(const at::Tensor& out) { out.flatten()[0].item<float>(); }

ScopedStopCheck::Why StopAfter(const MeasureLimits& limits) {
  return [&limits, start = SteadyClock::now()]() -> std::optional<Error> {
    if (limits.why_stop) {
      if (auto why = limits.why_stop()) return why;
    }
    if (SecondsSince(start) < limits.most_seconds) return std::nullopt;
    return Error(StatusCode::kDeadlineExceeded,
                 "takes longer than " + std::to_string(std::lround(limits.most_seconds)) + " s");
  };
}

}  // namespace

struct MeasuredCall::Tensors {
  AttentionInputs inputs;
  at::Tensor some;      // indices of the queries whose error is taken
  at::Tensor expected;  // what REFERENCE gives for them; made when it is first asked for
};

MeasuredCall::MeasuredCall(const MeasureShape& shape, const DeviceInfo& device,
                           const MeasureLimits& limits)
    : key_(KeyOf(shape.spec, shape.rows)),
      spec_(WithFewerHeads(shape, device, limits)),
      device_(device),
      rows_(shape.rows) {}

MeasuredCall::~MeasuredCall() = default;

MeasuredCall::Tensors& MeasuredCall::Made() {
  if (tensors_) return *tensors_;
  auto made = std::make_unique<Tensors>();
  made->inputs = MakeInputs(spec_, rows_, device_);
  made->some = SomeOf(spec_.q_len, DeviceOf(device_));
  tensors_ = std::move(made);
  return *tensors_;
}

void MeasuredCall::LetGo() { tensors_.reset(); }

MeasuredGroup MeasuredCall::Group() const {
  MeasuredGroup group;
  group.key = key_;
  group.num_heads = spec_.num_heads;
  group.q_len = spec_.q_len;
  group.kv_len = spec_.kv_len;
  group.batch_rows = rows_;
  group.error_queries = std::min(kErrorQueries, spec_.q_len);
  return group;
}

class Measuring::Calls {
 public:
  Calls(MeasuredCall& call, const AttentionBackend& backend, const AttentionBackend& reference)
      : call_(call), backend_(backend), reference_(reference) {
    if (const auto builder = backend_.MakeBuilder()) {
      metadata_ = builder->Build({0, 1, call_.spec_, ""});
    }
  }

  // The first one is the warm-up.
  void MakeNext() {
    if (error_) return TakeSample();
    at::Tensor out;
    const double first = Time(1, &out);
    error_ = ErrorOf(out);
    // On CUDA it has in it what is loaded and built for a first call.
    const bool on_cpu = call_.device_.type == DeviceInfo::Type::kCpu;
    if (on_cpu && first >= kLeastSample) first_ = first;
  }

  // Of as many samples as there are; none where more are wanted.
  std::optional<MeasuredRow> RowAfter(double enough_seconds) const {
    if (first_ && *first_ >= enough_seconds) return Row(*first_);
    const bool enough = samples_ == kSamples || (samples_ > 0 && spent_ >= enough_seconds);
    return enough ? std::optional(Row(least_)) : std::nullopt;
  }

 private:
  void TakeSample() {
    if (repeats_ == 0) {
      const double once = first_ ? *first_ : std::max(Time(1), 1e-7);
      repeats_ = static_cast<int>(std::ceil(kLeastSample / once));
    }
    const double seconds = Time(repeats_);
    spent_ += seconds;
    ++samples_;
    least_ = std::min(least_, seconds / repeats_);
  }

  // Seconds of so many calls in a row.
  double Time(int repeats, at::Tensor* last = nullptr) const {
    const AttentionInputs& inputs = call_.Made().inputs;
    const auto start = SteadyClock::now();
    at::Tensor out;
    for (int i = 0; i < repeats; ++i) out = backend_.Forward(inputs, metadata_.get());
    Await(out);
    const double seconds = SecondsSince(start);
    if (last != nullptr) *last = std::move(out);
    return seconds;
  }

  double ErrorOf(const at::Tensor& out) {
    MeasuredCall::Tensors& tensors = call_.Made();
    if (!tensors.expected.defined()) {
      tensors.expected =
          reference_.Forward(CallOf(tensors.inputs, tensors.some), nullptr).to(at::kDouble);
    }
    const at::Tensor got = out.index_select(1, tensors.some).to(at::kDouble);
    const double error = ((got - tensors.expected).norm() / tensors.expected.norm()).item<double>();
    if (error <= kMostError) return error;
    throw Error(StatusCode::kInternal, "gives numbers that are not finite");
  }

  MeasuredRow Row(double seconds) const { return {backend_.id(), seconds, *error_}; }

  MeasuredCall& call_;
  const AttentionBackend& backend_;
  const AttentionBackend& reference_;
  std::shared_ptr<const AttentionMetadata> metadata_;

  std::optional<double> error_, first_;  // first_: of a warm-up that is long enough to tell
  int repeats_ = 0;                      // 0: not known yet
  int samples_ = 0;
  // Of a call of a sample. Whatever else the machine does only makes a call longer.
  double least_ = std::numeric_limits<double>::infinity();
  double spent_ = 0;
};

Measuring::Measuring(AttnBackend id, MeasuredCall* call, const BackendRegistry& registry,
                     MeasureLimits limits)
    : id_(id), call_(*call), registry_(registry), limits_(std::move(limits)) {}

Measuring::~Measuring() = default;

std::optional<Measured> Measuring::Advance() {
  const c10::InferenceMode inference;
  Measured measured;
  const auto error = Caught([&] {
    if (calls_ == nullptr) Begin();
    const ScopedStopCheck stop(StopAfter(limits_));
    calls_->MakeNext();
    measured.row = calls_->RowAfter(limits_.enough_seconds);
  });
  if (!error) return measured.row ? std::optional(measured) : std::nullopt;
  RethrowDeviceLost(error);
  if (limits_.why_stop) {
    if (const auto why = limits_.why_stop()) throw *why;
  }
  return Measured{std::nullopt, error->what()};
}

void Measuring::Begin() {
  if (const auto why_not = registry_.WhyNot(id_, call_.spec_, call_.device_)) {
    throw Error(StatusCode::kFailedPrecondition, *why_not);
  }
  const AttentionBackend& backend = *registry_.Find(id_)->backend;
  const int64_t bytes = backend.Estimate(call_.spec_, "", call_.rows_).bytes;
  if (bytes > limits_.most_bytes) {
    throw Error(StatusCode::kResourceExhausted,
                "takes " + std::to_string(bytes >> 20) + " MiB a call");
  }
  calls_ =
      std::make_unique<Calls>(call_, backend, *registry_.Find(AttnBackend::kReference)->backend);
}

}  // namespace denoised
