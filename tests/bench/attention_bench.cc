// The attention rows, both sides in one process: A0 A4 A5 A6 A6b A6c, and those of GrowthRows().
// Dtypes are what --dtype=auto takes here; marks are in marks.py.
//
//   attention_bench [--pairs=N] [--threads=N] [--cpu_isa=LEVEL] [ROW...]      output: see timing.h
#include <array>
#include <map>

#include "backends/registry.h"
#include "tests/bench/attention_calls.h"
#include "tests/bench/planted_tiles.h"

namespace denoised {
namespace {

const std::vector<Axes> kWanGrids = {{1, 30, 52}, {2, 30, 52}, {4, 30, 52}};
const Axes kLongGrid = {4, 30, 52};      // 6,240 tokens
const Axes kWholeVideo = {21, 30, 52};   // 32,760 tokens: 81 frames of 480 x 832
constexpr int64_t kWholeVideoHeads = 4;  // enough for two threads; twelve would take minutes

void EmitA4(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const double rate = BestGemmRate(dtype);
  for (const Axes& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, dtype));
    emit({{"row", "A4"},
          {"mark_of", QueryCpu().amx_bf16 ? "A4-amx" : "A4"},
          {"name", "FLASH_ATTN against LibTorch SDPA, " + ShapeName(Product(grid), dtype)},
          {"unit", "s"},
          {"error", ErrorToFloat64(flash(inputs), inputs)},
          {"error_limit", DenseErrorLimit(dtype)},
          {"roofline", AttentionMultiplyAdds(Product(grid)) / rate},
          {"samples",
           Alternate([&] { flash(inputs); }, [&] { LibTorchSdpa(inputs); }, options.pairs)}});
  }
}

// Samples are seconds a multiply-add, so the ratio is the attention's share of the GEMM's rate.
void EmitA5(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const LinearRate linear(dtype, LinearNumerics::kPacked);
  for (const Axes& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, dtype));
    Json samples = Alternate([&] { flash(inputs); }, linear, options.pairs);
    for (Json& pair : samples) {
      pair[0] = pair[0].get<double>() / AttentionMultiplyAdds(Product(grid));
      pair[1] = pair[1].get<double>() / linear.multiply_adds();
    }
    emit({{"row", "A5"},
          {"name",
           "FLASH_ATTN's share of the packed GEMM's rate, " + ShapeName(Product(grid), dtype)},
          {"unit", "s/multiply-add"},
          {"error", ErrorToFloat64(flash(inputs), inputs)},
          {"error_limit", DenseErrorLimit(dtype)},
          {"samples", samples}});
  }
}

struct Sparse {
  AttnBackend id;
  const char* parameters;
};

// Gated, so that VIDEO_SPARSE_ATTN does all of its work: means, choice, sparse and coarse branch;
// over inputs that make its choice known. SLA's sparse part takes the same share.
void EmitA6(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const PlantedTiles planted(kLongGrid, kBenchHeads, kBenchHeadSize, /*groups=*/8, dtype);
  const AttentionInputs& inputs = planted.inputs();
  AttentionSpec spec = BenchSpec(kLongGrid, dtype);
  spec.has_gate = true;
  const Attention dense(AttnBackend::kFlashAttn, spec);
  for (const Sparse& which : {Sparse{AttnBackend::kVideoSparseAttn, R"({"sparsity": 0.875})"},
                              Sparse{AttnBackend::kSlaAttn, R"({"ratio": 0.125})"}}) {
    const Attention sparse(which.id, spec, which.parameters);
    Json row = {
        {"row", "A6"},
        {"name", std::string(AttnBackendName(which.id)) + " at 12.5 % against own dense, " +
                     ShapeName(Product(kLongGrid), dtype)},
        {"unit", "s"},
        {"samples", Alternate([&] { sparse(inputs); }, [&] { dense(inputs); }, options.pairs)}};
    if (which.id == AttnBackend::kVideoSparseAttn) {
      row["error"] = planted.ErrorOf(sparse(inputs));
      row["error_limit"] = DenseErrorLimit(dtype);
    }
    emit(row);
  }
}

void EmitA6b(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const AttentionInputs inputs = RandomInputs(Product(kLongGrid), dtype);
  const Attention dense(AttnBackend::kFlashAttn, BenchSpec(kLongGrid, dtype));
  const Attention sage(AttnBackend::kSageAttn, BenchSpec(kLongGrid, dtype));
  const at::Tensor a = sage(inputs).to(at::kDouble).flatten();
  const at::Tensor b = dense(inputs).to(at::kDouble).flatten();
  emit({{"row", "A6b"},
        {"name", "SAGE_ATTN against own dense, " + ShapeName(Product(kLongGrid), dtype) +
                     ", error is 1 - cosine"},
        {"unit", "s"},
        {"error", 1 - (a.dot(b) / (a.norm() * b.norm())).item<double>()},
        {"error_limit", 1e-3},
        {"samples", Alternate([&] { sage(inputs); }, [&] { dense(inputs); }, options.pairs)}});
}

// Its default chunks change from layer to layer: runs, rectangles, boxes. One layer of each.
void EmitA6c(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const AttentionInputs inputs = RandomInputs(Product(kWholeVideo), dtype, kWholeVideoHeads);
  const AttentionSpec spec = BenchSpec(kWholeVideo, dtype, kWholeVideoHeads);
  const Attention dense(AttnBackend::kFlashAttn, spec);
  for (int layer = 0; layer < 3; ++layer) {
    AttentionInputs of_layer = inputs;
    of_layer.layer_index = layer;
    const Attention vmoba(AttnBackend::kVmobaAttn, spec);
    emit({{"row", "A6c"},
          {"name", "VMOBA_ATTN at its defaults, layer " + std::to_string(layer) +
                       ", against own dense, " +
                       ShapeName(Product(kWholeVideo), dtype, kWholeVideoHeads)},
          {"unit", "s"},
          {"samples", Alternate([&] { vmoba(of_layer); }, [&] { dense(inputs); },
                                std::min(options.pairs, 3))}});
  }
}

// VMoBA's layers take the shapes of its chunks in turn: each is measured.
constexpr std::array<const char*, 3> kChunks = {"[2]", "[3, 4]", "[4, 6, 4]"};

void EmitA0Layer(const BenchOptions& options, const Emit& emit, AttnBackend id, int layer,
                 const std::string& chunk) {
  const std::set<AttnBackend> slow = {AttnBackend::kReference, AttnBackend::kSageAttnThree,
                                      AttnBackend::kAttnQatInfer};
  const at::ScalarType dtype = AutoDType();
  Json seconds = Json::object();
  for (const Axes& grid : {kWanGrids.front(), kLongGrid}) {
    AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    inputs.layer_index = layer;
    const Attention attend(id, BenchSpec(grid, dtype));
    seconds[std::to_string(Product(grid))] =
        MedianSeconds([&] { attend(inputs); }, slow.contains(id) ? 1 : options.pairs);
  }
  emit({{"row", "A0"},
        {"name", std::string(AttnBackendName(id)) + ", default parameters" + chunk +
                     ", 12 x 128, " + DTypeName(dtype)},
        {"unit", "s"},
        {"seconds", seconds}});
}

// Every backend of this machine at its default parameters, a line each, and one for each chunk
// shape of VMoBA. The slow ones run once.
void EmitA0(const BenchOptions& options, const Emit& emit) {
  for (const auto& entry : BackendRegistry::Default().entries()) {
    const AttentionSpec spec = BenchSpec(kLongGrid, AutoDType());
    if (BackendRegistry::Default().WhyNot(entry.id, spec, QueryCpu())) continue;
    if (entry.id != AttnBackend::kVmobaAttn) {
      EmitA0Layer(options, emit, entry.id, 0, "");
      continue;
    }
    for (size_t layer = 0; layer < kChunks.size(); ++layer) {
      EmitA0Layer(options, emit, entry.id, static_cast<int>(layer),
                  std::string(", chunk ") + kChunks[layer]);
    }
  }
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::Rows rows = {{"A0", denoised::EmitA0},   {"A4", denoised::EmitA4},
                         {"A5", denoised::EmitA5},   {"A6", denoised::EmitA6},
                         {"A6b", denoised::EmitA6b}, {"A6c", denoised::EmitA6c}};
  for (const auto& row : denoised::GrowthRows()) rows.push_back(row);
  return denoised::RunBench(argc, argv, rows);
}
