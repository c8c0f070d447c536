// The attention rows, both sides in one process: A0 A4 A5 A6 A6b A6c A6s, and those of
// GrowthRows(). Dtypes are what --dtype=auto takes here; marks are in marks.py.
//
//   attention_bench [--pairs=N] [--threads=N] [--cpu_isa=LEVEL] [ROW...]      output: see timing.h
#include <array>
#include <map>

#include "backends/intra_op.h"
#include "backends/registry.h"
#include "backends/sparse_backend.h"
#include "tests/bench/attention_calls.h"
#include "tests/bench/attention_checks.h"
#include "tests/bench/planted_tiles.h"

namespace denoised {
namespace {

const std::vector<Axes> kWanGrids = {{1, 30, 52}, {2, 30, 52}, {4, 30, 52}};
const Axes kLongGrid = {4, 30, 52};      // 6,240 tokens
const Axes kWholeVideo = {21, 30, 52};   // 32,760 tokens: 81 frames of 480 x 832
constexpr int64_t kWholeVideoHeads = 4;  // enough for two threads; twelve would take minutes

void EmitA4(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const GemmRates product(dtype);
  for (const Axes& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, dtype));
    Json rooflines = Json::array();
    const Json samples = Alternate(
        [&] { flash(inputs); }, [&] { LibTorchSdpa(inputs); }, options.pairs,
        [&] { rooflines.push_back(AttentionMultiplyAdds(Product(grid)) / product.Best()); });
    emit({{"row", "A4"},
          {"name", "FLASH_ATTN against LibTorch SDPA, " + ShapeName(Product(grid), dtype)},
          {"unit", "s"},
          {"error", ErrorToFloat64(flash(inputs), inputs)},
          {"error_limit", DenseErrorLimit(dtype)},
          {"rooflines", rooflines},
          {"samples", samples}});
  }
}

// Samples are seconds a multiply-add, so the ratio is the attention's share of the GEMM's rate.
void EmitA5(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const Work product = PackedProduct(dtype);
  for (const Axes& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, dtype));
    Json samples = Alternate([&] { flash(inputs); }, product, options.pairs);
    for (Json& pair : samples) {
      pair[0] = pair[0].get<double>() / AttentionMultiplyAdds(Product(grid));
      pair[1] = pair[1].get<double>() / GemmShape().multiply_adds();
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
    const at::Tensor out = sparse(inputs);
    if (which.id == AttnBackend::kVideoSparseAttn) {
      row["error"] = planted.ErrorOf(out);
      row["error_limit"] = DenseErrorLimit(dtype);
    } else {
      row.update(ErrorOf(sparse, out, inputs));
      Demand(AttendsKeys(sparse, inputs, 0.125 * static_cast<double>(Product(kLongGrid))), &row);
    }
    emit(row);
  }
}

void EmitA6b(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const AttentionInputs inputs = RandomInputs(Product(kLongGrid), dtype);
  const Attention dense(AttnBackend::kFlashAttn, BenchSpec(kLongGrid, dtype));
  const Attention sage(AttnBackend::kSageAttn, BenchSpec(kLongGrid, dtype));
  Json row = {{"row", "A6b"},
              {"name", "SAGE_ATTN against own dense, " + ShapeName(Product(kLongGrid), dtype) +
                           ", error is 1 - cosine"},
              {"unit", "s"},
              {"samples", Alternate([&] { sage(inputs); }, [&] { dense(inputs); }, options.pairs)}};
  row.update(ErrorOf(sage, sage(inputs), inputs));
  emit(row);
}

// VMoBA's default chunks change from layer to layer: runs of two frames, rectangles through all
// frames, boxes.
struct Chunk {
  const char* name;
  Axes shape;  // 0: the whole axis
};
constexpr std::array<Chunk, 3> kChunks = {
    {{"[2]", {2, 0, 0}}, {"[3, 4]", {0, 3, 4}}, {"[4, 6, 4]", {4, 6, 4}}}};

Axes ShapeOf(const Chunk& chunk, const Axes& grid) {
  Axes shape = chunk.shape;
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = shape[i] == 0 ? grid[i] : shape[i];
  return shape;
}

// One layer of each.
void EmitA6c(const BenchOptions& options, const Emit& emit) {
  const at::ScalarType dtype = AutoDType();
  const AttentionInputs inputs = RandomInputs(Product(kWholeVideo), dtype, kWholeVideoHeads);
  const AttentionSpec spec = BenchSpec(kWholeVideo, dtype, kWholeVideoHeads);
  const Attention dense(AttnBackend::kFlashAttn, spec);
  for (int layer = 0; layer < std::ssize(kChunks); ++layer) {
    AttentionInputs of_layer = inputs;
    of_layer.layer_index = layer;
    const Attention vmoba(AttnBackend::kVmobaAttn, spec);
    Json row = {{"row", "A6c"},
                {"name", "VMOBA_ATTN at its defaults, layer " + std::to_string(layer) +
                             ", against own dense, " +
                             ShapeName(Product(kWholeVideo), dtype, kWholeVideoHeads)},
                {"unit", "s"},
                {"samples", Alternate([&] { vmoba(of_layer); }, [&] { dense(inputs); },
                                      std::min(options.pairs, 3))}};
    row.update(ErrorOf(vmoba, vmoba(of_layer), of_layer));
    Demand(FollowsVmoba(vmoba, of_layer, kWholeVideo, ShapeOf(kChunks[layer], kWholeVideo)), &row);
    emit(row);
  }
}

// Opens what is for the backends' own Forward.
struct Opened : SparseBackend {
  using SparseBackend::MakeBands;
};

// What a call chooses, before and while it attends, by itself: all bands are made and forgotten.
class Choosing {
 public:
  Choosing(const Attention& attention, const AttentionInputs& inputs)
      : backend_(dynamic_cast<const SparseBackend&>(attention.backend())) {
    const auto& metadata = dynamic_cast<const SparseMetadata&>(*attention.metadata());
    call_.inputs = inputs;
    call_.host_query = inputs.query;
    call_.host_key = inputs.key;
    call_.setting = metadata.setting.get();
    call_.step_index = metadata.step_index;
  }

  void operator()() const {
    const std::unique_ptr<SparseBands> bands = (backend_.*&Opened::MakeBands)(call_);
    ParallelFor(call_.heads() * bands->bands(), 1, [&](int64_t begin, int64_t end) {
      kernels::Band band;
      for (int64_t i = begin; i < end; ++i) {
        band.Clear();
        bands->Make(i / bands->bands(), i % bands->bands(), &band);
      }
    });
  }

 private:
  const SparseBackend& backend_;
  SparseCall call_;
};

// Samples are of the choice and of a whole call, in turns.
void EmitChoice(const BenchOptions& options, const Emit& emit, AttnBackend id, int layer,
                const Axes& grid, int64_t heads) {
  const at::ScalarType dtype = AutoDType();
  AttentionInputs inputs = RandomInputs(Product(grid), dtype, heads);
  inputs.layer_index = layer;
  const Attention sparse(id, BenchSpec(grid, dtype, heads));
  const Choosing choosing(sparse, inputs);
  const Json samples =
      Alternate([&] { choosing(); }, [&] { sparse(inputs); }, std::min(options.pairs, 3));
  std::vector<double> shares;
  for (const Json& pair : samples) shares.push_back(pair[0].get<double>() / pair[1].get<double>());
  std::sort(shares.begin(), shares.end());
  Json row = {
      {"row", "A6s"},
      {"name", "choosing's share of a call of " + std::string(AttnBackendName(id)) + ", layer " +
                   std::to_string(layer) + ", " + ShapeName(Product(grid), dtype, heads)},
      {"seconds", samples},
      {"value", shares[shares.size() / 2]}};
  row.update(ErrorOf(sparse, sparse(inputs), inputs));
  emit(row);
}

// At their defaults, VMoBA in a layer of each of its chunks.
void EmitA6s(const BenchOptions& options, const Emit& emit) {
  for (const AttnBackend id : {AttnBackend::kVideoSparseAttn, AttnBackend::kVmobaAttn,
                               AttnBackend::kBsaAttn, AttnBackend::kNablaAttn}) {
    const int layers = id == AttnBackend::kVmobaAttn ? std::ssize(kChunks) : 1;
    for (int layer = 0; layer < layers; ++layer) {
      EmitChoice(options, emit, id, layer, kLongGrid, kBenchHeads);
      EmitChoice(options, emit, id, layer, kWholeVideo, kWholeVideoHeads);
    }
  }
}

void EmitA0Layer(const BenchOptions& options, const Emit& emit, AttnBackend id, int layer,
                 const std::string& chunk) {
  const std::set<AttnBackend> slow = {AttnBackend::kReference, AttnBackend::kSageAttnThree,
                                      AttnBackend::kAttnQatInfer};
  const at::ScalarType dtype = AutoDType();
  Json seconds = Json::object(), row;
  for (const Axes& grid : {kWanGrids.front(), kLongGrid}) {
    AttentionInputs inputs = RandomInputs(Product(grid), dtype);
    inputs.layer_index = layer;
    const Attention attend(id, BenchSpec(grid, dtype));
    at::Tensor out;
    seconds[std::to_string(Product(grid))] =
        MedianSeconds([&] { out = attend(inputs); }, slow.contains(id) ? 1 : options.pairs);
    const Json error = ErrorOf(attend, out, inputs);
    if (row.empty() || error.at("error") > row.at("error")) row = error;
  }
  row.update({{"row", "A0"},
              {"name", std::string(AttnBackendName(id)) + ", default parameters" + chunk +
                           ", 12 x 128, " + DTypeName(dtype)},
              {"unit", "s"},
              {"seconds", seconds}});
  emit(row);
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
                  std::string(", chunk ") + kChunks[layer].name);
    }
  }
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::Rows rows = {{"A0", denoised::EmitA0},   {"A4", denoised::EmitA4},
                         {"A5", denoised::EmitA5},   {"A6", denoised::EmitA6},
                         {"A6b", denoised::EmitA6b}, {"A6c", denoised::EmitA6c},
                         {"A6s", denoised::EmitA6s}};
  for (const auto& row : denoised::GrowthRows()) rows.push_back(row);
  return denoised::RunBench(argc, argv, rows);
}
