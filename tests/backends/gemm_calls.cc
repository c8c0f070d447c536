#include "tests/backends/gemm_calls.h"

#include <gtest/gtest.h>

#include "backends/kernels/gemm_tile.h"
#include "backends/kernels/team.h"
#include "tests/backends/gemm_amx_emulated.h"

namespace denoised::kernels {
namespace {

bool IsAmx(GemmIsa isa) { return isa == GemmIsa::kAmxBf16 || isa == GemmIsa::kAmxInt8; }

// The emulated tiles where the CPU has no others.
const GemmTileKernel* StandIn(GemmIsa isa) {
  static const GemmTileKernel bf16 = {GemmTileAmxBf16Emulated, nullptr, BeginAmxEmulated,
                                      EndAmxEmulated};
  static const GemmTileKernel int8 = {GemmTileAmxInt8Emulated, nullptr, BeginAmxEmulated,
                                      EndAmxEmulated};
  if (!IsAmx(isa) || HasGemmIsa(isa, QueryCpu())) return nullptr;
  return isa == GemmIsa::kAmxBf16 ? &bf16 : &int8;
}

}  // namespace

RunWorkers OnOwnTeam() {
  return [](int64_t tasks, const std::function<void(const Worker&)>& work) {
    OwnTeam().Run(std::min<int64_t>(tasks, 2), work);
  };
}

at::ScalarType TypeOf(Element element) {
  return element == Element::kFloat32 ? at::kFloat : at::kBFloat16;
}

void PrintTo(const GemmCase& c, std::ostream* out) {
  *out << GemmIsaName(c.isa) << (c.element == Element::kFloat32 ? "_float32" : "_bfloat16");
}

bool Runs(GemmIsa isa) {
  const DeviceInfo cpu = QueryCpu();
  return HasGemmIsa(isa, cpu) || (IsAmx(isa) && cpu.avx512_bf16 && cpu.avx512_vnni);
}

WeightPanels Pack(const at::Tensor& weight, const GemmCase& c) {
  return WeightPanels(weight.const_data_ptr(), c.element, weight.size(0), weight.size(1), c.isa);
}

void MultiplyMany(std::span<const GemmProduct> products, const RunWorkers& run_workers,
                  const RowsDone& done) {
  GemmMany(products, run_workers, StandIn(products[0].weight->isa()), done);
}

at::Tensor Multiply(const at::Tensor& x, const WeightPanels& weight, const at::Tensor& bias,
                    const How& how) {
  at::Tensor spaced = at::zeros({x.size(0), x.size(1) + how.x_gap}, x.options());
  spaced.narrow(1, 0, x.size(1)).copy_(x);
  const double untouched = 7;
  at::Tensor y = at::full({x.size(0), weight.n() + how.y_gap}, untouched, x.options());
  GemmCall call;
  call.rows = x.size(0);
  call.x = spaced.const_data_ptr();
  call.x_stride = spaced.stride(0);
  call.y = y.mutable_data_ptr();
  call.y_stride = y.stride(0);
  call.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  call.activation = how.activation;
  Gemm(call, weight, OnThreads(how.threads), StandIn(weight.isa()));
  EXPECT_TRUE(y.narrow(1, weight.n(), how.y_gap).eq(untouched).all().item<bool>());
  return y.narrow(1, 0, weight.n()).contiguous();
}

double ErrorShare(const at::Tensor& y, const at::Tensor& wanted, const at::Tensor& magnitudes,
                  double share) {
  const double half_step = y.scalar_type() == at::kFloat ? 0x1p-24 : 0x1p-8;
  const at::Tensor allowed = wanted.abs() * half_step + magnitudes * share;
  return ((y.to(at::kDouble) - wanted).abs() / allowed).max().item<double>();
}

}  // namespace denoised::kernels
