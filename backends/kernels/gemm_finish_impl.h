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

// V::kLanes columns from `n` on of a row of the tile, of which `left` are there.
template <class V, Activation kActivation>
inline typename V::F FinishedLanes(const float* sums, const float* bias, int n, int left) {
  typename V::F x = V::Load(sums + n, V::kLanes);
  if (bias != nullptr) x = V::Add(x, V::Load(bias + n, left));
  return Activated<V, kActivation>(x);
}

// The same, written to what begins at `to`.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishLanes(const float* sums, const float* bias, const float* gate, void* to, int n,
                        int left) {
  typename V::F x = FinishedLanes<V, kActivation>(sums, bias, n, left);
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

// What does not change from row to row is read once: the compiler cannot know that it does not.
template <class V, Activation kActivation, FinishTo kTo>
inline void FinishRows(const GemmFinish& finish) {
  constexpr int kSize = kTo == FinishTo::kHalves ? 2 : 4;
  const float* sums = finish.sums;
  const float* const bias = finish.bias;
  const float* const* const gates = finish.gates;
  char* to = static_cast<char*>(kTo == FinishTo::kAdded ? finish.add_to : finish.y);
  const int rows = finish.rows, columns = finish.columns;
  const int64_t stride = finish.stride * kSize;
  for (int row = 0; row < rows; ++row, sums += kPanelColumns, to += stride) {
    const float* const gate = gates != nullptr ? gates[row] : nullptr;
    if (columns < kPanelColumns) {
      for (int n = 0; n < columns; n += V::kLanes) {
        FinishLanes<V, kActivation, kTo>(sums, bias, gate, to, n, columns - n);
      }
    } else if constexpr (kTo == FinishTo::kHalves && kPanelColumns == 2 * V::kLanes) {
      V::StoreHalves(reinterpret_cast<uint16_t*>(to),
                     FinishedLanes<V, kActivation>(sums, bias, 0, V::kLanes),
                     FinishedLanes<V, kActivation>(sums, bias, V::kLanes, V::kLanes));
    } else {
      for (int n = 0; n < kPanelColumns; n += V::kLanes) {
        FinishLanes<V, kActivation, kTo>(sums, bias, gate, to, n, V::kLanes);
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
