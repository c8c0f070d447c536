// How a tile's sums become results, once over a vector type `V` of floats (activations.h) that also
// has Load and Store of some lanes, of float32 and bfloat16, and where two vectors are a panel's
// columns StoreHalves of both. Each instruction set's file includes this inside its own unnamed
// namespace, after activations_impl.h.

enum class FinishTo : uint8_t { kFloats, kHalves, kAdded };

template <class V, Activation kActivation>
inline typename V::F Activated(typename V::F x) {
  if constexpr (kActivation == Activation::kGeluTanh) return GeluTanh<V>(x);
  if constexpr (kActivation == Activation::kSilu) return Silu<V>(x);
  return x;
}

// The sums of V::kLanes columns from `n` on of a row of the tile, of which `left` are there.
template <class V, Activation kActivation>
inline typename V::F Finished(typename V::F sums, const float* bias, int n, int left) {
  if (bias != nullptr) sums = V::Add(sums, V::Load(bias + n, left));
  return Activated<V, kActivation>(sums);
}

// The same, written to what begins at `to`.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishLanes(typename V::F sums, const float* bias, const float* gate, void* to, int n,
                        int left) {
  typename V::F x = Finished<V, kActivation>(sums, bias, n, left);
  if constexpr (kTo == FinishTo::kFloats) {
    V::Store(static_cast<float*>(to) + n, left, x);
  } else if constexpr (kTo == FinishTo::kHalves) {
    V::Store(static_cast<uint16_t*>(to) + n, left, x);
  } else {
    if (gate != nullptr) x = V::Mul(x, V::Load(gate + n, left));
    float* const sum = static_cast<float*>(to) + n;
    V::Store(sum, left, V::Add(V::Load(sum, left), x));
  }
}

// Two neighbouring vectors that are all there.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishTwo(typename V::F low, typename V::F high, const float* bias, const float* gate,
                      void* to, int n) {
  constexpr int kLanes = V::kLanes;
  if constexpr (kTo == FinishTo::kHalves && kPanelColumns == 2 * kLanes) {
    V::StoreHalves(static_cast<uint16_t*>(to) + n, Finished<V, kActivation>(low, bias, n, kLanes),
                   Finished<V, kActivation>(high, bias, n + kLanes, kLanes));
  } else {
    FinishLanes<V, kActivation, kTo>(low, bias, gate, to, n, kLanes);
    FinishLanes<V, kActivation, kTo>(high, bias, gate, to, n + kLanes, kLanes);
  }
}

template <FinishTo kTo>
inline char* FirstOf(const GemmFinish& finish) {
  return static_cast<char*>(kTo == FinishTo::kAdded ? finish.add_to : finish.y);
}
template <FinishTo kTo>
inline int64_t RowBytes(const GemmFinish& finish) {
  return finish.stride * (kTo == FinishTo::kHalves ? 2 : 4);
}

// What does not change from row to row is read once: the compiler cannot know that it does not.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishRows(const GemmFinish& finish) {
  const float* sums = finish.sums;
  const float* const bias = finish.bias;
  const float* const* const gates = finish.gates;
  char* to = FirstOf<kTo>(finish);
  const int rows = finish.rows, columns = finish.columns;
  const int64_t stride = RowBytes<kTo>(finish);
  const auto load = [&](int n) { return V::Load(sums + n, V::kLanes); };
  for (int row = 0; row < rows; ++row, sums += kPanelColumns, to += stride) {
    const float* const gate = gates != nullptr ? gates[row] : nullptr;
    if (columns < kPanelColumns) {
      for (int n = 0; n < columns; n += V::kLanes) {
        FinishLanes<V, kActivation, kTo>(load(n), bias, gate, to, n, columns - n);
      }
    } else {
      for (int n = 0; n < kPanelColumns; n += 2 * V::kLanes) {
        FinishTwo<V, kActivation, kTo>(load(n), load(n + V::kLanes), bias, gate, to, n);
      }
    }
  }
}

// run(to) with where results go as a constant.
template <class Run>
inline void Finishing(const GemmFinish& finish, const Run& run) {
  if (finish.add_to != nullptr) {
    run(std::integral_constant<FinishTo, FinishTo::kAdded>());
  } else if (finish.half) {
    run(std::integral_constant<FinishTo, FinishTo::kHalves>());
  } else {
    run(std::integral_constant<FinishTo, FinishTo::kFloats>());
  }
}

template <class V, Activation kActivation>
inline void FinishActivated(const GemmFinish& finish) {
  Finishing(finish, [&](auto to) { FinishRows<V, kActivation, to()>(finish); });
}

template <class V>
inline void RunFinish(const GemmFinish& finish) {
  switch (finish.activation) {
    case Activation::kNone:
      return FinishActivated<V, Activation::kNone>(finish);
    case Activation::kGeluTanh:
      return FinishActivated<V, Activation::kGeluTanh>(finish);
    case Activation::kSilu:
      return FinishActivated<V, Activation::kSilu>(finish);
  }
}
