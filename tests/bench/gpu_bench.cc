// The attention rows of a CUDA device, both sides in one process: D0 to D5.
//
//   gpu_bench [--pairs=N] [ROW...]     a row that fails says so on stderr, the others go on
//
// Prints a JSON line a row and shape for gpu_rows.py: `samples` (seconds of ours and of the peer, a
// pair each, taken in turns), the rates, and the error between both outputs. Exit 3, with the
// reason on stderr, where this machine has no CUDA device. Backends that have not been measured are
// admitted: this is how they are.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/cuda/flash3.h"
#include "backends/error.h"
#include "backends/registry.h"
#include "backends/tiling.h"
#include "tests/bench/planted_tiles.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using Attention = std::function<at::Tensor(const AttentionInputs&)>;
using Named = std::pair<std::string, Attention>;

constexpr int64_t kHeadSize = 128;
constexpr int kExitNoDevice = 3;

struct Options {
  int pairs = 5;
  std::set<std::string> rows;
  bool Wants(const std::string& row) const { return rows.empty() || rows.count(row) > 0; }
};

// Seconds of one call, from a run of `repeats` that ends with the device idle.
double SecondsOf(const std::function<void()>& work, int repeats) {
  c10::cuda::device_synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) work();
  c10::cuda::device_synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

// Calls that together take about 100 ms, after a warm-up that also makes plans.
int RepeatsOf(const std::function<void()>& work) {
  SecondsOf(work, 2);
  return std::clamp(static_cast<int>(0.1 / std::max(SecondsOf(work, 1), 1e-6)), 1, 1000);
}

double MedianSeconds(const std::function<void()>& work, int count) {
  const int repeats = RepeatsOf(work);
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) seconds.push_back(SecondsOf(work, repeats));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Both sides in turns; the side that starts changes.
Json Alternate(const std::function<void()>& ours, const std::function<void()>& peer, int pairs) {
  const int ours_repeats = RepeatsOf(ours), peer_repeats = RepeatsOf(peer);
  Json samples = Json::array();
  for (int pair = 0; pair < pairs; ++pair) {
    double mine = pair % 2 == 0 ? SecondsOf(ours, ours_repeats) : 0;
    const double theirs = SecondsOf(peer, peer_repeats);
    if (pair % 2 == 1) mine = SecondsOf(ours, ours_repeats);
    samples.push_back({mine, theirs});
  }
  return samples;
}

AttentionInputs RandomInputs(int64_t tokens, int64_t heads) {
  at::manual_seed(tokens);
  const auto options = at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16);
  AttentionInputs inputs;
  for (at::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
    *tensor = at::randn({1, tokens, heads, kHeadSize}, options);
  }
  inputs.scale = 1 / std::sqrt(static_cast<double>(kHeadSize));
  return inputs;
}

AttentionSpec SpecOf(const AttentionInputs& inputs) {
  AttentionSpec spec;
  spec.num_heads = inputs.query.size(2);
  spec.head_size = kHeadSize;
  spec.dtype = DType::kBFloat16;
  spec.q_len = spec.kv_len = inputs.query.size(1);
  return spec;
}

// ||a - b|| / ||b||, a head at a time: whole tensors in float32 would not fit twice.
double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  double difference = 0, size = 0;
  for (int64_t head = 0; head < b.size(2); ++head) {
    const at::Tensor want = b.select(2, head).to(at::kFloat);
    difference += (a.select(2, head).to(at::kFloat) - want).square().sum().item<double>();
    size += want.square().sum().item<double>();
  }
  return std::sqrt(difference / size);
}

double DenseFlops(const AttentionInputs& inputs) {
  const double n = static_cast<double>(inputs.query.size(1));
  return 4.0 * static_cast<double>(inputs.query.size(2)) * n * n * kHeadSize;
}

at::Tensor HeadsFirst(const at::Tensor& x) { return x.transpose(1, 2); }

// What LibTorch offers, called by name, and its own choice.
std::vector<Named> Peers() {
  return {{"SDPA default",
           [](const AttentionInputs& in) {
             return at::scaled_dot_product_attention(HeadsFirst(in.query), HeadsFirst(in.key),
                                                     HeadsFirst(in.value), {}, 0, false, in.scale)
                 .transpose(1, 2);
           }},
          {"cuDNN forced",
           [](const AttentionInputs& in) {
             return std::get<0>(at::_scaled_dot_product_cudnn_attention(
                                    HeadsFirst(in.query), HeadsFirst(in.key), HeadsFirst(in.value),
                                    std::nullopt, /*compute_log_sumexp=*/false, 0.0, false, false,
                                    in.scale))
                 .transpose(1, 2);
           }},
          {"FA2 forced",
           [](const AttentionInputs& in) {
             return std::get<0>(at::_scaled_dot_product_flash_attention(
                                    HeadsFirst(in.query), HeadsFirst(in.key), HeadsFirst(in.value),
                                    0.0, false, false, in.scale))
                 .transpose(1, 2);
           }},
          // The operator that the wheel's Python face calls, without that face.
          {"fa3_fwd", [](const AttentionInputs& in) {
             if (!Flash3Serves(in)) {
               throw Error(StatusCode::kFailedPrecondition,
                           "fa3_fwd does not load or does not serve");
             }
             return Flash3Forward(in);
           }}};
}

std::vector<Named> Ours(const AttentionInputs& inputs, const DeviceInfo& device) {
  std::vector<Named> ours;
  const BackendRegistry& registry = BackendRegistry::WithUnmeasured();
  for (AttnBackend id :
       {AttnBackend::kCudnnAttn, AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa}) {
    if (registry.WhyNot(id, SpecOf(inputs), device)) continue;
    const AttentionBackend* backend = registry.Find(id)->backend;
    ours.emplace_back(AttnBackendName(id), [backend](const AttentionInputs& in) {
      return backend->Forward(in, nullptr);
    });
  }
  return ours;
}

// The fastest that works, with TFLOP/s of all in `rates`; what fails is in there by its message.
Named Fastest(const std::vector<Named>& sides, const AttentionInputs& inputs, int count,
              Json* rates) {
  Named best;
  double least = 0;
  for (const Named& side : sides) {
    try {
      const double seconds = MedianSeconds([&] { side.second(inputs); }, count);
      (*rates)[side.first] = DenseFlops(inputs) / seconds * 1e-12;
      if (least == 0 || seconds < least) best = side;
      if (least == 0 || seconds < least) least = seconds;
    } catch (const std::exception& error) {
      (*rates)[side.first] = std::string("failed: ") + error.what();
    }
  }
  if (least == 0) throw Error(StatusCode::kFailedPrecondition, rates->dump());
  return best;
}

void EmitD1(const Options& options, const DeviceInfo& device) {
  for (int64_t heads : {12, 40}) {
    for (int64_t tokens : {8192, 32768, 75600}) {
      const AttentionInputs inputs = RandomInputs(tokens, heads);
      Json our_rates = Json::object(), peer_rates = Json::object();
      const Named ours = Fastest(Ours(inputs, device), inputs, options.pairs, &our_rates);
      const Named peer = Fastest(Peers(), inputs, options.pairs, &peer_rates);
      const auto run = [&](const Named& side) { return [&] { side.second(inputs); }; };
      const Json samples = Alternate(run(ours), run(peer), options.pairs);
      const double error = RelativeError(ours.second(inputs), peer.second(inputs));
      std::cout << Json{{"row", "D1"},
                        {"name", "dense attention bf16 d128, N=" + std::to_string(tokens) + ", " +
                                     std::to_string(heads) + " heads: " + ours.first +
                                     " against the best peer, " + peer.first},
                        {"samples", samples},
                        {"ours_tflops", our_rates},
                        {"peers_tflops", peer_rates},
                        {"error", error},
                        {"error_limit", 0.02}}
                       .dump()
                << std::endl;
    }
  }
}

// Each query tile attends a tenth of the key tiles, drawn at random, another tenth in each head.
kernels::BlockPlan RandomPlan(const Partition& tiles, int64_t heads, int64_t kept) {
  PlanBuilder builder(tiles, tiles, heads);
  std::mt19937 random(20260101);
  std::vector<int32_t> all(tiles.blocks());
  std::iota(all.begin(), all.end(), 0);
  for (int64_t row = 0; row < heads * tiles.blocks(); ++row) {
    std::vector<int32_t> chosen;
    std::sample(all.begin(), all.end(), std::back_inserter(chosen), kept, random);
    builder.AddRow(row % tiles.blocks(), chosen);
  }
  return builder.Take();
}

// The faster kernel of those that this device has, with the TFLOP/s of each.
std::pair<HalfKernel, Json> FasterKernel(const AttentionInputs& inputs, const DevicePlan& plan,
                                         const DeviceInfo& device, double work, int count) {
  const auto seconds = [&](HalfKernel kernel) {
    return MedianSeconds([&] { BlockSparseForwardCuda(inputs, plan, kernel); }, count);
  };
  const double mma = seconds(HalfKernel::kMmaSync);
  Json rates = {{"mma.sync", work / mma * 1e-12}};
  if (device.major != 9) return {HalfKernel::kMmaSync, rates};
  const double wgmma = seconds(HalfKernel::kWgmma);
  rates["wgmma"] = work / wgmma * 1e-12;
  return {wgmma < mma ? HalfKernel::kWgmma : HalfKernel::kMmaSync, rates};
}

// Of the kernel over all blocks of one head, against dense attention: that it is the same
// arithmetic. Its masks are the contract suite's business.
double ErrorOfKernel(const AttentionInputs& inputs, HalfKernel kernel, const Attention& dense) {
  AttentionInputs head = inputs;
  for (at::Tensor* x : {&head.query, &head.key, &head.value}) *x = x->narrow(2, 0, 1);
  const int64_t tokens = head.query.size(1);
  const DevicePlan all = UploadPlan(kernels::DensePlan(tokens, tokens), head.query.device());
  return RelativeError(BlockSparseForwardCuda(head, all, kernel), dense(head));
}

// The kernel alone, its plan on the device, beside dense attention over the same tensors.
void EmitD4(const Options& options, const DeviceInfo& device) {
  constexpr int64_t kHeads = 16;
  const Axes grid = {20, 32, 64};
  const Partition tiles = TileGrid(grid, {4, 4, 4});
  const int64_t kept = tiles.blocks() / 10;
  const AttentionInputs inputs = RandomInputs(Product(grid), kHeads);
  const kernels::BlockPlan plan = RandomPlan(tiles, kHeads, kept);
  const DevicePlan device_plan = UploadPlan(plan, inputs.query.device());
  Json rates = Json::object();
  const Named dense = Fastest(Ours(inputs, device), inputs, options.pairs, &rates);
  const double work =
      DenseFlops(inputs) * static_cast<double>(kept) / static_cast<double>(tiles.blocks());
  const auto [kernel, kernel_rates] =
      FasterKernel(inputs, device_plan, device, work, options.pairs);
  const auto sparse = [&, kernel = kernel] { BlockSparseForwardCuda(inputs, device_plan, kernel); };
  const double seconds = MedianSeconds(sparse, options.pairs);
  const double with_upload = MedianSeconds(
      [&, kernel = kernel] {
        BlockSparseForwardCuda(inputs, UploadPlan(plan, inputs.query.device()), kernel);
      },
      options.pairs);
  std::cout << Json{{"row", "D4"},
                    {"name", "block-sparse forward, 90 % sparse, N=40960, 16 heads, tiles of 64"},
                    {"unit", "effective TFLOP/s"},
                    {"value", work / seconds * 1e-12},
                    {"kernels_tflops", kernel_rates},
                    {"seconds", seconds},
                    {"seconds_with_plan_upload", with_upload},
                    {"dense_tflops", rates},
                    {"samples", Alternate(
                                    sparse, [&] { dense.second(inputs); }, options.pairs)},
                    {"error", ErrorOfKernel(inputs, kernel, dense.second)},
                    {"error_limit", 0.02}}
                   .dump()
            << std::endl;
}

double Cosine(const at::Tensor& a, const at::Tensor& b) {
  double product = 0, a_size = 0, b_size = 0;
  for (int64_t head = 0; head < b.size(2); ++head) {
    const at::Tensor x = a.select(2, head).to(at::kFloat), y = b.select(2, head).to(at::kFloat);
    product += (x * y).sum().item<double>();
    a_size += x.square().sum().item<double>();
    b_size += y.square().sum().item<double>();
  }
  return product / std::sqrt(a_size * b_size);
}

// A backend as a server calls it: its metadata made once, as for the layers of one step.
Attention BackendWith(AttnBackend id, const AttentionSpec& spec, const std::string& parameters,
                      const DeviceInfo& device) {
  const BackendRegistry& registry = BackendRegistry::WithUnmeasured();
  if (const auto reason = registry.WhyNot(id, spec, device)) {
    throw Error(StatusCode::kFailedPrecondition, *reason);
  }
  const AttentionBackend* backend = registry.Find(id)->backend;
  std::shared_ptr<AttentionMetadataBuilder> builder = backend->MakeBuilder();
  std::shared_ptr<const AttentionMetadata> metadata;
  if (builder) metadata = builder->Build({0, 1, spec, parameters});
  return [=](const AttentionInputs& in) { return backend->Forward(in, metadata.get()); };
}

struct FewerBits {
  const char* row;
  AttnBackend id;
  const char* parameters;
};

// Attention with fewer bits against our own fastest in bfloat16.
void EmitFewerBits(const FewerBits& which, const Options& options, const DeviceInfo& device) {
  const AttentionInputs inputs = RandomInputs(32768, 12);
  Json rates = Json::object();
  const Named dense = Fastest(Ours(inputs, device), inputs, options.pairs, &rates);
  const Attention ours = BackendWith(which.id, SpecOf(inputs), which.parameters, device);
  const Json samples =
      Alternate([&] { ours(inputs); }, [&] { dense.second(inputs); }, options.pairs);
  std::cout << Json{{"row", which.row},
                    {"name", std::string(AttnBackendName(which.id)) + " " + which.parameters +
                                 ", N=32768, 12 heads, against " + dense.first + " in bf16"},
                    {"samples", samples},
                    {"dense_tflops", rates},
                    {"error_is", "1 - cosine"},
                    {"error", 1 - Cosine(ours(inputs), dense.second(inputs))},
                    {"error_limit", 1e-3}}
                   .dump()
            << std::endl;
}

// A whole call of VIDEO_SPARSE_ATTN: means, choice, sparse and gated coarse branch, over inputs
// that make its choice known.
void EmitD5(const Options& options, const DeviceInfo& device) {
  const Axes grid = {21, 45, 80};
  const PlantedTiles planted(grid, 12, kHeadSize, /*groups=*/10,
                             at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16));
  const AttentionInputs& inputs = planted.inputs();
  Json rates = Json::object();
  const Named dense = Fastest(Ours(inputs, device), inputs, options.pairs, &rates);
  AttentionSpec spec = SpecOf(inputs);
  spec.grid = grid;
  spec.has_gate = true;
  const Attention sparse =
      BackendWith(AttnBackend::kVideoSparseAttn, spec, R"({"sparsity": 0.9})", device);
  const Json samples =
      Alternate([&] { sparse(inputs); }, [&] { dense.second(inputs); }, options.pairs);
  std::cout << Json{{"row", "D5"},
                    {"name",
                     "VIDEO_SPARSE_ATTN at 90 %, gated, N=75600, 12 heads, against " + dense.first},
                    {"samples", samples},
                    {"dense_tflops", rates},
                    {"error", planted.ErrorOf(sparse(inputs))},
                    {"error_limit", 5e-3}}
                   .dump()
            << std::endl;
}

// Every backend that serves at its default parameters, as a server calls it. Those that make their
// masks on the host, and float64, are asked the short call only.
void EmitD0(const Options& options, const DeviceInfo& device) {
  const std::set<AttnBackend> slow = {AttnBackend::kReference, AttnBackend::kVmobaAttn,
                                      AttnBackend::kBsaAttn, AttnBackend::kNablaAttn};
  const BackendRegistry& registry = BackendRegistry::WithUnmeasured();
  for (const auto& entry : registry.entries()) {
    Json seconds = Json::object();
    for (const Axes& grid : {Axes{4, 30, 52}, Axes{21, 30, 52}}) {
      const AttentionInputs inputs = RandomInputs(Product(grid), 12);
      AttentionSpec spec = SpecOf(inputs);
      spec.grid = grid;
      if (registry.WhyNot(entry.id, spec, device)) continue;
      if (slow.contains(entry.id) && grid[0] > 4) continue;
      const Attention attend = BackendWith(entry.id, spec, "", device);
      seconds[std::to_string(Product(grid))] =
          MedianSeconds([&] { attend(inputs); }, slow.contains(entry.id) ? 1 : options.pairs);
    }
    if (seconds.empty()) continue;
    const std::string name(AttnBackendName(entry.id));
    std::cout << Json{{"row", "D0"},
                      {"name", name + ", default parameters, bf16, 12 x 128"},
                      {"unit", "s"},
                      {"seconds", seconds}}
                     .dump()
              << std::endl;
  }
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--pairs=", 0) == 0) {
      options.pairs = std::stoi(argument.substr(8));
    } else {
      options.rows.insert(argument);
    }
  }
  return options;
}

int Run(const Options& options) {
  DeviceInfo device;
  try {
    device = QueryCuda(0);
  } catch (const Error& error) {
    std::cerr << "gpu_bench: " << error.what() << std::endl;
    return kExitNoDevice;
  }
  std::cout << Json{{"device", device.name}}.dump() << std::endl;
  int failed = 0;
  const auto measure = [&](const std::string& row, const std::function<void()>& emit) {
    if (!options.Wants(row)) return;
    try {
      emit();
    } catch (const std::exception& error) {
      std::cerr << row << ": " << error.what() << std::endl;
      failed = 1;
    }
  };
  const FewerBits fp8 = {"D2", AttnBackend::kCudnnAttn, R"({"fp8": true})"};
  const FewerBits int8 = {"D3", AttnBackend::kSageAttn, ""};
  measure("D0", [&] { EmitD0(options, device); });
  measure("D1", [&] { EmitD1(options, device); });
  measure("D2", [&] { EmitFewerBits(fp8, options, device); });
  measure("D3", [&] { EmitFewerBits(int8, options, device); });
  measure("D4", [&] { EmitD4(options, device); });
  measure("D5", [&] { EmitD5(options, device); });
  return failed;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  const c10::InferenceMode inference;
  return denoised::Run(denoised::Parse(argc, argv));
}
