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

// `columns` of a row; V::kLanes at a time, of the last perhaps fewer.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishRow(const GemmFinish& finish, int row, int columns) {
  const int64_t at = row * finish.stride;
  const float* const gate = finish.gates != nullptr ? finish.gates[row] : nullptr;
  for (int n = 0; n < columns; n += V::kLanes) {
    const int left = columns - n;
    typename V::F x = V::Load(finish.sums + row * kPanelColumns + n, V::kLanes);
    if (finish.bias != nullptr) x = V::Add(x, V::Load(finish.bias + n, left));
    x = Activated<V, kActivation>(x);
    if constexpr (kTo == FinishTo::kFloats) {
      V::Store(static_cast<float*>(finish.y) + at + n, left, x);
    } else if constexpr (kTo == FinishTo::kHalves) {
      V::Store(static_cast<uint16_t*>(finish.y) + at + n, left, x);
    } else {
      if (gate != nullptr) x = V::Mul(x, V::Load(gate + n, left));
      V::Store(finish.add_to + at + n, left, V::Add(V::Load(finish.add_to + at + n, left), x));
    }
  }
}

template <class V, Activation kActivation, FinishTo kTo>
inline void FinishRows(const GemmFinish& finish) {
  for (int row = 0; row < finish.rows; ++row) {
    if (finish.columns == kPanelColumns) {
      FinishRow<V, kActivation, kTo>(finish, row, kPanelColumns);
    } else {
      FinishRow<V, kActivation, kTo>(finish, row, finish.columns);
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
