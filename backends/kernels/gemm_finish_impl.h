// How a tile's sums become results, once over a vector type `V` of floats (activations.h) that also
// has Load and Store of some lanes, of float32 and bfloat16. Each instruction set's file includes
// this inside its own unnamed namespace, after activations_impl.h.

enum class FinishTo : uint8_t { kFloats, kHalves, kAdded };

template <class V, Activation kActivation>
inline typename V::F Activated(typename V::F x) {
  if constexpr (kActivation == Activation::kGeluTanh) return GeluTanh<V>(x);
  if constexpr (kActivation == Activation::kSilu) return Silu<V>(x);
  return x;
}

// V::kLanes columns from `n` on of a row of the tile, of which `left` are there; `at` is where the
// row begins in what is written.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishLanes(const float* sums, const float* bias, const float* gate, void* to,
                        int64_t at, int n, int left) {
  typename V::F x = V::Load(sums + n, V::kLanes);
  if (bias != nullptr) x = V::Add(x, V::Load(bias + n, left));
  x = Activated<V, kActivation>(x);
  if constexpr (kTo == FinishTo::kFloats) {
    V::Store(static_cast<float*>(to) + at + n, left, x);
  } else if constexpr (kTo == FinishTo::kHalves) {
    V::Store(static_cast<uint16_t*>(to) + at + n, left, x);
  } else {
    if (gate != nullptr) x = V::Mul(x, V::Load(gate + n, left));
    float* const sum = static_cast<float*>(to) + at + n;
    V::Store(sum, left, V::Add(V::Load(sum, left), x));
  }
}

// What does not change from row to row is read once: the compiler cannot know that it does not.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishRows(const GemmFinish& finish) {
  const float* sums = finish.sums;
  const float* const bias = finish.bias;
  const float* const* const gates = finish.gates;
  void* const to = kTo == FinishTo::kAdded ? finish.add_to : finish.y;
  const int rows = finish.rows, columns = finish.columns;
  const int64_t stride = finish.stride;
  for (int row = 0; row < rows; ++row, sums += kPanelColumns) {
    const float* const gate = gates != nullptr ? gates[row] : nullptr;
    if (columns == kPanelColumns) {
      for (int n = 0; n < kPanelColumns; n += V::kLanes) {
        FinishLanes<V, kActivation, kTo>(sums, bias, gate, to, row * stride, n, V::kLanes);
      }
    } else {
      for (int n = 0; n < columns; n += V::kLanes) {
        FinishLanes<V, kActivation, kTo>(sums, bias, gate, to, row * stride, n, columns - n);
      }
    }
  }
}

template <class V, Activation kActivation>
inline void FinishActivated(const GemmFinish& finish) {
  if (finish.add_to != nullptr) return FinishRows<V, kActivation, FinishTo::kAdded>(finish);
  if (finish.half) return FinishRows<V, kActivation, FinishTo::kHalves>(finish);
  FinishRows<V, kActivation, FinishTo::kFloats>(finish);
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
