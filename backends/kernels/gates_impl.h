// The kernels of gates.h, once, over a vector type `S`: what tile_impl.h, included before this,
// asks of float32 units, and Min, Div, Select(a > b ? x : y), AtLeast(a, b) (a bit a lane),
// AddAtLeast (sum, x, floor) (x where it is `floor` or more), and for float64 Doubles,
// AddDoubles(&sums, F), Sum(a, b), StoreDoubles.

// Sums of kRuns runs of `units` units each, as a tree over the runs.
template <class S, int kV, int kRuns>
inline void MultiplyRuns(const uint32_t* means, const uint32_t* queries, int units,
                         typename S::F (&acc)[kGroup][kV]) {
  if constexpr (kRuns == 1) {
    for (auto& row : acc) {
      for (auto& x : row) x = S::Zero();
    }
    MultiplyUnits<S, kV>(means, queries, units, kGateLanes, acc);
  } else {
    constexpr int kHalf = kRuns / 2;
    typename S::F other[kGroup][kV];
    MultiplyRuns<S, kV, kHalf>(means, queries, units, acc);
    MultiplyRuns<S, kV, kHalf>(means + kHalf * units * kGroup, queries + kHalf * units * kGateLanes,
                               units, other);
    for (int r = 0; r < kGroup; ++r) {
      for (int v = 0; v < kV; ++v) acc[r][v] = S::Add(acc[r][v], other[r][v]);
    }
  }
}

template <class S>
inline void MultiplyGates(const float* means, const float* queries, int64_t chunks, int64_t size,
                          float* gates) {
  constexpr int kV = S::kColumns / 2 * 2;
  static_assert(kGateLanes % (kV * S::kLanes) == 0);
  const int units = static_cast<int>(size / kDotLanes), rest = static_cast<int>(size % kDotLanes);
  for (int64_t chunk = 0; chunk < chunks; chunk += kGroup) {
    const uint32_t* mean = reinterpret_cast<const uint32_t*>(means + chunk * size);
    for (int lane = 0; lane < kGateLanes; lane += kV * S::kLanes) {
      const uint32_t* query = reinterpret_cast<const uint32_t*>(queries + lane);
      typename S::F acc[kGroup][kV];
      MultiplyRuns<S, kV, kDotLanes>(mean, query, units, acc);
      const int64_t whole = units * kDotLanes;
      MultiplyUnits<S, kV>(mean + whole * kGroup, query + whole * kGateLanes, rest, kGateLanes,
                           acc);
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < kV; ++v) {
          S::Store(gates + (chunk + r) * kGateLanes + lane + v * S::kLanes, acc[r][v]);
        }
      }
    }
  }
}

// Of the lanes at `gates`: how far each is stretched.
template <class S>
inline void FindRange(const float* gates, int64_t chunks, typename S::F* low,
                      typename S::F* spread) {
  typename S::F least = S::Load(gates), most = least;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    const typename S::F x = S::Load(gates + chunk * kGateLanes);
    least = S::Min(least, x);
    most = S::Max(most, x);
  }
  const typename S::F range = S::Sub(most, least);
  *low = least;
  *spread = S::Select(range, S::Set1(1e-6f), range, S::Set1(1.0f));
}

// Totals as StretchRow has them: of every fourth value, then the four together, then what is left.
template <class S>
inline void StretchGates(float* gates, int64_t chunks, double* totals) {
  using D = typename S::Doubles;
  for (int lane = 0; lane < kGateLanes; lane += S::kLanes) {
    typename S::F low, spread;
    FindRange<S>(gates + lane, chunks, &low, &spread);
    const auto stretch = [&](int64_t chunk) {
      float* at = gates + chunk * kGateLanes + lane;
      const typename S::F x = S::Div(S::Sub(S::Load(at), low), spread);
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
    S::StoreDoubles(totals + lane, total);
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
