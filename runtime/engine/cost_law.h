// What a kind of unit costs by its sizes, from some that ran: predicts shapes that never did.
// Torch-free; a value.
#ifndef DENOISED_RUNTIME_ENGINE_COST_LAW_H_
#define DENOISED_RUNTIME_ENGINE_COST_LAW_H_

#include <array>
#include <cstddef>
#include <vector>

namespace denoised {

// A unit's sizes; multiply_adds and tokens are one row's.
struct UnitSize {
  double rows = 1, multiply_adds = 0, tokens = 0;
};

// seconds = a + rows (b + c multiply_adds + d tokens + e tokens^2), no coefficient negative; only
// those that the samples bear out (Schwarz 1978), because few shapes are known. What the law misses
// near a shape is corrected by how far it missed its neighbours.
class CostLaw {
 public:
  struct Sample {
    UnitSize size;
    double seconds = 0;
    double weight = 1;
  };

  CostLaw() = default;
  explicit CostLaw(std::vector<Sample> samples);

  bool empty() const { return samples_.empty(); }
  double Seconds(const UnitSize& size) const;

 private:
  static constexpr size_t kTerms = 5;
  using Terms = std::array<double, kTerms>;
  static Terms TermsOf(const UnitSize& size);
  double Law(const UnitSize& size) const;
  void Fit();

  std::vector<Sample> samples_;
  std::vector<double> missed_;  // log of measured / law, a sample
  Terms coefficients_ = {};
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COST_LAW_H_
