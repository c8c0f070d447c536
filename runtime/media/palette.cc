#include "runtime/media/palette.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>

namespace denoised {
namespace {

constexpr size_t kMaxColours = 256;
constexpr int kBits = 6;  // a channel, of the histogram that is cut
constexpr int kLookupBits = 5;

uint32_t Pack(const uint8_t* p, int bits) {
  const int drop = 8 - bits;
  return static_cast<uint32_t>(p[0] >> drop) << (2 * bits) |
         static_cast<uint32_t>(p[1] >> drop) << bits | static_cast<uint32_t>(p[2] >> drop);
}

// Fills `frame` if the colours are few enough.
bool TryExact(const uint8_t* rgb, int64_t pixels, PalettedFrame& frame) {
  std::unordered_map<uint32_t, uint8_t> known;
  for (int64_t i = 0; i < pixels; ++i) {
    const uint8_t* p = rgb + 3 * i;
    const auto [found, fresh] =
        known.emplace(Pack(p, 8), static_cast<uint8_t>(frame.palette.size()));
    if (fresh) {
      if (frame.palette.size() == kMaxColours) return false;
      frame.palette.push_back({p[0], p[1], p[2]});
    }
    frame.indices.push_back(found->second);
  }
  return true;
}

// A colour of the histogram: sums over its pixels, so that means are exact.
struct Bin {
  std::array<int64_t, 3> sum{};
  int64_t count = 0;

  double Mean(int channel) const {
    return static_cast<double>(sum[static_cast<size_t>(channel)]) / static_cast<double>(count);
  }
};

std::vector<Bin> Histogram(const uint8_t* rgb, int64_t pixels) {
  std::vector<Bin> bins(size_t{1} << (3 * kBits));
  for (int64_t i = 0; i < pixels; ++i) {
    Bin& bin = bins[Pack(rgb + 3 * i, kBits)];
    for (size_t c = 0; c < 3; ++c) bin.sum[c] += rgb[3 * i + static_cast<int64_t>(c)];
    ++bin.count;
  }
  std::erase_if(bins, [](const Bin& bin) { return bin.count == 0; });
  return bins;
}

// A box of the cut: a range of bins, its weighted variance along the channel where that is largest.
struct Box {
  size_t begin;
  size_t end;
  int channel = 0;
  double variance = 0;
};

Box MeasureBox(const std::vector<Bin>& bins, size_t begin, size_t end) {
  Box box{begin, end};
  for (int channel = 0; channel < 3; ++channel) {
    double sum = 0, squares = 0, count = 0;
    for (size_t i = begin; i < end; ++i) {
      const double mean = bins[i].Mean(channel), weight = static_cast<double>(bins[i].count);
      sum += mean * weight;
      squares += mean * mean * weight;
      count += weight;
    }
    const double variance = squares - sum * sum / count;
    if (variance <= box.variance) continue;
    box.variance = variance;
    box.channel = channel;
  }
  return box;
}

// Where the lower half of the box's pixels ends; both halves keep a bin.
size_t MedianOf(std::vector<Bin>& bins, const Box& box) {
  const auto begin = bins.begin() + static_cast<ptrdiff_t>(box.begin);
  const auto end = bins.begin() + static_cast<ptrdiff_t>(box.end);
  std::stable_sort(begin, end, [&](const Bin& a, const Bin& b) {
    return a.Mean(box.channel) < b.Mean(box.channel);
  });
  int64_t total = 0, seen = 0;
  for (size_t i = box.begin; i < box.end; ++i) total += bins[i].count;
  size_t cut = box.begin;
  while (seen * 2 < total) seen += bins[cut++].count;
  return std::clamp(cut, box.begin + 1, box.end - 1);
}

Rgb MeanColour(const std::vector<Bin>& bins, const Box& box) {
  Bin all;
  for (size_t i = box.begin; i < box.end; ++i) {
    for (size_t c = 0; c < 3; ++c) all.sum[c] += bins[i].sum[c];
    all.count += bins[i].count;
  }
  return {static_cast<uint8_t>(all.Mean(0) + 0.5), static_cast<uint8_t>(all.Mean(1) + 0.5),
          static_cast<uint8_t>(all.Mean(2) + 0.5)};
}

std::vector<Rgb> MedianCut(std::vector<Bin> bins) {
  std::vector<Box> boxes = {MeasureBox(bins, 0, bins.size())};
  while (boxes.size() < kMaxColours) {
    const auto widest =
        std::max_element(boxes.begin(), boxes.end(),
                         [](const Box& a, const Box& b) { return a.variance < b.variance; });
    if (widest->end - widest->begin < 2 || widest->variance <= 0) break;
    const size_t cut = MedianOf(bins, *widest), end = widest->end;
    *widest = MeasureBox(bins, widest->begin, cut);
    boxes.push_back(MeasureBox(bins, cut, end));
  }
  std::vector<Rgb> palette;
  for (const Box& box : boxes) palette.push_back(MeanColour(bins, box));
  return palette;
}

// The palette's nearest colour, remembered for each cell of 5 bits a channel.
class Nearest {
 public:
  explicit Nearest(const std::vector<Rgb>& palette)
      : palette_(palette), known_(size_t{1} << (3 * kLookupBits), -1) {}

  uint8_t Find(const Rgb& colour) {
    int16_t& known = known_[Pack(colour.data(), kLookupBits)];
    if (known < 0) known = Search(colour);
    return static_cast<uint8_t>(known);
  }

 private:
  int16_t Search(const Rgb& colour) const {
    int best = 0, least = INT32_MAX;
    for (size_t i = 0; i < palette_.size(); ++i) {
      int distance = 0;
      for (size_t c = 0; c < 3; ++c) {
        const int d = palette_[i][c] - colour[c];
        distance += d * d;
      }
      if (distance >= least) continue;
      least = distance;
      best = static_cast<int>(i);
    }
    return static_cast<int16_t>(best);
  }

  const std::vector<Rgb>& palette_;
  std::vector<int16_t> known_;
};

// Error diffusion in sixteenths; `here` and `below` hold what earlier pixels pushed on.
std::vector<uint8_t> Dither(const uint8_t* rgb, int64_t height, int64_t width,
                            const std::vector<Rgb>& palette) {
  Nearest nearest(palette);
  std::vector<uint8_t> indices;
  indices.reserve(static_cast<size_t>(height * width));
  const size_t stride = static_cast<size_t>(width + 2) * 3;  // a pixel of margin on both sides
  std::vector<int> here(stride, 0), below(stride, 0);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const size_t at = static_cast<size_t>(x + 1) * 3;
      std::array<int, 3> wanted;
      Rgb rounded;
      for (size_t c = 0; c < 3; ++c) {
        wanted[c] = rgb[(y * width + x) * 3 + static_cast<int64_t>(c)] + here[at + c] / 16;
        rounded[c] = static_cast<uint8_t>(std::clamp(wanted[c], 0, 255));
      }
      indices.push_back(nearest.Find(rounded));
      for (size_t c = 0; c < 3; ++c) {
        const int error = rounded[c] - palette[indices.back()][c];
        here[at + 3 + c] += error * 7;
        below[at - 3 + c] += error * 3;
        below[at + c] += error * 5;
        below[at + 3 + c] += error;
      }
    }
    here.swap(below);
    std::fill(below.begin(), below.end(), 0);
  }
  return indices;
}

}  // namespace

PalettedFrame MakePaletted(const uint8_t* rgb, int64_t height, int64_t width) {
  PalettedFrame frame;
  frame.indices.reserve(static_cast<size_t>(height * width));
  if (TryExact(rgb, height * width, frame)) return frame;
  frame.palette = MedianCut(Histogram(rgb, height * width));
  frame.indices = Dither(rgb, height, width, frame.palette);
  return frame;
}

}  // namespace denoised
