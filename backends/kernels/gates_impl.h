// The kernels of gates.h, once, over a vector type `S`: what tile_impl.h, included before this,
// asks of float32 units, and Min, Div, Select(a > b ? x : y), AtLeast(a, b) (a bit a lane),
// AddAtLeast (sum, x, floor) (x where it is `floor` or more), and for float64 Doubles,
// AddDoubles(&sums, F), Sum(a, b), StoreDoubles.

template <class S>
inline void MultiplyGates(const float* means, const float* queries, int64_t chunks, int64_t size,
                          float* gates) {
  constexpr int kV = S::kColumns / 2 * 2;
  static_assert(kGateLanes % (kV * S::kLanes) == 0);
  for (int64_t chunk = 0; chunk < chunks; chunk += kGroup) {
    const uint32_t* mean = reinterpret_cast<const uint32_t*>(means + chunk * size);
    for (int lane = 0; lane < kGateLanes; lane += kV * S::kLanes) {
      typename S::F acc[kGroup][kV];
      for (auto& row : acc) {
        for (auto& x : row) x = S::Zero();
      }
      MultiplyUnits<S, kV>(mean, reinterpret_cast<const uint32_t*>(queries + lane),
                           static_cast<int>(size), kGateLanes, acc);
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < kV; ++v) {
          S::Store(gates + (chunk + r) * kGateLanes + lane + v * S::kLanes, acc[r][v]);
        }
      }
    }
  }
}

// How far the gates of some lanes are stretched: (x - low) / spread.
template <class S>
struct Stretch {
  typename S::F low, spread, minus_spread, inverse, rest;

  Stretch(const float* gates, int64_t chunks) {
    typename S::F most = low = S::Load(gates);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const typename S::F x = S::Load(gates + chunk * kGateLanes);
      low = S::Min(low, x);
      most = S::Max(most, x);
    }
    const typename S::F range = S::Sub(most, low);
    spread = S::Select(range, S::Set1(1e-6f), range, S::Set1(1.0f));
    minus_spread = S::Sub(S::Zero(), spread);
    inverse = S::Div(S::Set1(1.0f), spread);
    rest = S::Mul(S::MulAdd(S::Set1(1.0f), minus_spread, inverse), inverse);
  }

  // Whether Quotient is what division gives: what is not 0 of x - low is a multiple of the last bit
  // of numbers from 2^-55 on, so that no step of it, the remainder included, is below 2^-126.
  bool IsPlain() const {
    constexpr uint32_t kAll = (1u << S::kLanes) - 1;
    const typename S::F size = S::Max(low, S::Sub(S::Zero(), low));
    return S::AtLeast(size, S::Set1(0x1p-54f)) == kAll &&
           S::AtLeast(S::Set1(0x1p24f), spread) == kAll;
  }

  // x / spread in the manner of Markstein (Computation of elementary functions on the IBM RISC
  // System/6000, 1990): a quotient that is off by at most the last bit, and a step of correction
  // with the remainder, which is exact. Four operations where a division takes as long as sixteen.
  typename S::F Quotient(typename S::F x) const {
    const typename S::F near = S::MulAdd(S::Mul(x, inverse), x, rest);
    const typename S::F remainder = S::MulAdd(x, near, minus_spread);
    return S::MulAdd(near, remainder, inverse);
  }
};

// Totals as StretchRow has them: of every fourth value, then the four together, then what is left.
template <class S, typename Divide>
inline void StretchLanes(float* gates, int64_t chunks, const Divide& divide, double* totals) {
  using D = typename S::Doubles;
  const auto stretch = [&](int64_t chunk) {
    float* at = gates + chunk * kGateLanes;
    const typename S::F x = divide(S::Load(at));
    S::Store(at, x);
    return x;
  };
  D sums[4] = {};
  int64_t chunk = 0;
  for (; chunk + 4 <= chunks; chunk += 4) {
    for (int i = 0; i < 4; ++i) S::AddDoubles(&sums[i], stretch(chunk + i));
  }
  D total = S::Sum(S::Sum(S::Sum(sums[0], sums[1]), sums[2]), sums[3]);
  for (; chunk < chunks; ++chunk) S::AddDoubles(&total, stretch(chunk));
  S::StoreDoubles(totals, total);
}

template <class S>
inline void StretchGates(float* gates, int64_t chunks, double* totals) {
  for (int lane = 0; lane < kGateLanes; lane += S::kLanes) {
    using F = typename S::F;
    const Stretch<S> by(gates + lane, chunks);
    if (by.IsPlain()) {
      const auto divide = [&by](F x) { return by.Quotient(S::Sub(x, by.low)); };
      StretchLanes<S>(gates + lane, chunks, divide, totals + lane);
    } else {
      const auto divide = [&by](F x) { return S::Div(S::Sub(x, by.low), by.spread); };
      StretchLanes<S>(gates + lane, chunks, divide, totals + lane);
    }
  }
}

// Sums of the values of kV vectors of lanes that are `floors` or more.
template <class S, int kV>
inline void SumFrom(const float* values, int64_t chunks, const typename S::F (&floors)[kV],
                    typename S::F (&sums)[kV]) {
  for (auto& sum : sums) sum = S::Zero();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int v = 0; v < kV; ++v) {
      const typename S::F x = S::Load(values + chunk * kGateLanes + v * S::kLanes);
      sums[v] = S::AddAtLeast(sums[v], x, floors[v]);
    }
  }
}

template <class S>
inline void FindFloors(const float* values, int64_t chunks, const float* wanted, int digits,
                       float* floors) {
  constexpr int kV = 4;
  for (int lane = 0; lane < kGateLanes; lane += kV * S::kLanes) {
    typename S::F floor[kV], next[kV], sums[kV];
    for (auto& x : floor) x = S::Zero();
    float step = 0.5f;
    for (int digit = 0; digit < digits; ++digit, step /= 2) {
      for (int v = 0; v < kV; ++v) next[v] = S::Add(floor[v], S::Set1(step));
      SumFrom<S, kV>(values + lane, chunks, next, sums);
      for (int v = 0; v < kV; ++v) {
        const typename S::F want = S::Load(wanted + lane + v * S::kLanes);
        floor[v] = S::Select(want, sums[v], floor[v], next[v]);
      }
    }
    for (int v = 0; v < kV; ++v) S::Store(floors + lane + v * S::kLanes, floor[v]);
  }
}

template <class S>
inline void SplitGates(const float* values, int64_t chunks, const float* floors,
                       const float* ceilings, uint64_t* above, int64_t stride, uint64_t* within,
                       double* sums) {
  for (int64_t chunk = 0; chunk < chunks; ++chunk) above[chunk * stride] = within[chunk] = 0;
  for (int lane = 0; lane < kGateLanes; lane += S::kLanes) {
    const typename S::F low = S::Load(floors + lane), high = S::Load(ceilings + lane);
    typename S::Doubles sum = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const typename S::F x = S::Load(values + chunk * kGateLanes + lane);
      const uint64_t top = S::AtLeast(x, high), both = S::AtLeast(x, low);
      above[chunk * stride] |= top << lane;
      within[chunk] |= (both & ~top) << lane;
      S::AddDoubles(&sum, S::AddAtLeast(S::Zero(), x, high));
    }
    S::StoreDoubles(sums + lane, sum);
  }
}

template <class S>
constexpr GateKernels KernelsOver() {
  return {MultiplyGates<S>, StretchGates<S>, FindFloors<S>, SplitGates<S>};
}
