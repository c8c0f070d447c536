#include "runtime/loaders/weights.h"

#include <unistd.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/stop_point.h"
#include "runtime/loaders/config.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/loaders/weight_files.h"

namespace denoised {
namespace {

// Converted in pieces that stay in a core's cache, and that LibTorch does not share out.
constexpr int64_t kConvertedAtOnce = 32 << 10;
// Of a whole tensor, elements between two stop points: some milliseconds; and of a thread's part.
constexpr int64_t kReadAtOnce = 8 << 20, kPart = 256 << 10;

Error Bad(const std::string& file, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, file + ": " + message, file);
}

std::string ShapeText(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

at::ScalarType SourceType(const std::string& file, const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return at::kFloat;
  if (entry.dtype == "F16") return at::kHalf;
  if (entry.dtype == "BF16") return at::kBFloat16;
  throw Bad(file, "tensor '" + entry.name + "': dtype " + entry.dtype +
                      " is not supported; supported: F32, F16, BF16");
}

// A hostile file may declare terabytes of holes; an allocator that overcommits would say yes and
// the reading would then end the process.
void CheckMemory(const std::string& file, const SafetensorsEntry& entry, at::ScalarType dtype) {
  const uint64_t machine =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t elements =
      (entry.end - entry.begin) * 8 / static_cast<uint64_t>(SafetensorsDtypeBits(entry.dtype));
  if (elements <= machine / c10::elementSize(dtype)) return;
  throw Error(StatusCode::kResourceExhausted,
              file + ": tensor '" + entry.name + "': shape " + ShapeText(entry.shape) +
                  " is more than the machine's memory",
              file);
}

// A tensor in a file, as a dtype. Any threads at once.
class ElementReader {
 public:
  ElementReader(std::shared_ptr<const ReadOnlyFile> file, const SafetensorsEntry& entry,
                at::ScalarType dtype)
      : file_(std::move(file)),
        begin_(entry.begin),
        source_(SourceType(file_->path(), entry)),
        dtype_(dtype) {}

  // `count` elements from `first` on to `out`, dense.
  void Read(int64_t first, int64_t count, void* out) const {
    if (source_ == dtype_) return ReadAsTheyAre(first, count, out);
    const kernels::ThreadBuffer<char> room(kConvertedAtOnce * Width(source_));
    for (int64_t done = 0; done < count; done += kConvertedAtOnce) {
      const int64_t some = std::min(kConvertedAtOnce, count - done);
      ReadAsTheyAre(first + done, some, room.get());
      at::from_blob(static_cast<char*>(out) + done * Width(dtype_), {some}, dtype_)
          .copy_(at::from_blob(room.get(), {some}, source_));
    }
  }

  // All of them, on this thread's and its helpers' processors; has stop points.
  void ReadAll(const at::Tensor& out) const {
    char* const to = static_cast<char*>(out.data_ptr());
    for (int64_t done = 0; done < out.numel(); done += kReadAtOnce) {
      StopPoint();
      ParallelFor(std::min(kReadAtOnce, out.numel() - done), kPart,
                  [&](int64_t begin, int64_t end) {
                    Read(done + begin, end - begin, to + (done + begin) * Width(dtype_));
                  });
    }
  }

 private:
  static int64_t Width(at::ScalarType dtype) {
    return static_cast<int64_t>(c10::elementSize(dtype));
  }
  void ReadAsTheyAre(int64_t first, int64_t count, void* out) const {
    file_->ReadAt(begin_ + static_cast<uint64_t>(first * Width(source_)), out,
                  static_cast<uint64_t>(count * Width(source_)));
  }

  const std::shared_ptr<const ReadOnlyFile> file_;
  const uint64_t begin_;
  const at::ScalarType source_, dtype_;
};

struct Shard {
  std::string name;  // in the folder
  std::shared_ptr<const ReadOnlyFile> file;
  SafetensorsHeader header;
};

Shard OpenShard(const ModelFolder& folder, const std::string& name) {
  std::shared_ptr<const ReadOnlyFile> file = folder.OpenWeights(name);
  SafetensorsHeader header = ReadSafetensorsHeader(*file);
  return {name, std::move(file), std::move(header)};
}

// A shard must be a plain file name in the index's own folder: an index must not lead elsewhere.
void CheckShardName(const std::string& index, const std::string& name) {
  const bool bare = !name.empty() && name.size() <= 255 && name.front() != '.' &&
                    name.find_first_of("/\\") == std::string::npos &&
                    name.find('\0') == std::string::npos && name.ends_with(".safetensors");
  if (!bare) throw Bad(index, "weight_map names a shard that is not a bare *.safetensors name");
}

// Other tools write a sum of something else there; the shards' own headers are what counts.
void CompareTotalSize(const ModelFolder& folder, const ConfigReader& index,
                      const std::vector<Shard>& shards) {
  const auto& json = index.json();
  if (!index.Has("metadata") || !json.at("metadata").is_object()) return;
  const auto found = json.at("metadata").find("total_size");
  if (found == json.at("metadata").end() || found->is_null()) return;
  uint64_t came = 0;
  for (const Shard& shard : shards) {
    for (const SafetensorsEntry& entry : shard.header.tensors) came += entry.end - entry.begin;
  }
  if (*found == came) return;
  folder.Warn(index.path() + ": metadata.total_size is " + found->dump().substr(0, 40) +
              ", the shards hold " + std::to_string(came) + " bytes");
}

// Where a tensor is: indices into the shards and their headers.
struct Place {
  size_t shard;
  size_t entry;
};
using Places = std::unordered_map<std::string, Place>;

Places FindPlaces(const std::vector<Shard>& shards) {
  Places places;
  for (size_t s = 0; s < shards.size(); ++s) {
    const auto& tensors = shards[s].header.tensors;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const auto [found, fresh] = places.emplace(tensors[t].name, Place{s, t});
      if (fresh) continue;
      throw Bad(shards[s].file->path(), "tensor '" + tensors[t].name + "' is also in " +
                                            shards[found->second.shard].file->path());
    }
  }
  return places;
}

using WeightMap = std::map<std::string, std::string>;  // tensor -> shard

WeightMap ReadWeightMap(const ConfigReader& index) {
  const auto& json = index.json();
  const auto found = json.find("weight_map");
  if (found == json.end() || !found->is_object() || found->empty()) {
    throw Bad(index.path(), "wanted an object weight_map with at least one tensor");
  }
  WeightMap map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string()) throw Bad(index.path(), "weight_map: a shard name is not a string");
    CheckShardName(index.path(), shard.get<std::string>());
    map.emplace(tensor, shard.get<std::string>());
  }
  return map;
}

// As diffusers does: tensors are taken from whatever shard has them, and one that no shard has is
// missed only where the network needs it.
void CompareWeightMap(const ModelFolder& folder, const ConfigReader& index, const WeightMap& map,
                      const std::vector<Shard>& shards, const Places& places) {
  size_t elsewhere = 0, nowhere = 0;
  std::string first_elsewhere, first_nowhere;
  for (const auto& [tensor, shard] : map) {
    const auto found = places.find(tensor);
    if (found == places.end()) {
      if (nowhere++ == 0) first_nowhere = tensor;
    } else if (shards[found->second.shard].name != shard) {
      if (elsewhere++ == 0) first_elsewhere = tensor;
    }
  }
  const auto warn = [&](size_t count, const std::string& first, const std::string& what) {
    if (count == 0) return;
    folder.Warn(index.path() + ": weight_map names " + std::to_string(count) + " tensors that " +
                what + ", the first is '" + first + "'");
  };
  warn(nowhere, first_nowhere, "no shard has");
  warn(elsewhere, first_elsewhere, "are in another shard than it says");
}

// All absent shards in one message.
void RequireShards(const ModelFolder& folder, const ConfigReader& index,
                   const std::set<std::string>& names) {
  std::vector<std::string> absent;
  for (const std::string& name : names) {
    if (!folder.Has(name)) absent.push_back(name);
  }
  if (absent.empty()) return;
  const std::string unfinished = folder.FindUnfinished();
  const std::string file = folder.PathOf(absent.front());
  throw Error(StatusCode::kNotFound,
              file + ": cannot be opened: no such file; " + index.path() + " names it, and " +
                  std::to_string(absent.size()) + " of " + std::to_string(names.size()) +
                  " shards are missing: a download that is not complete" +
                  (unfinished.empty() ? "" : " (see " + unfinished + ")"),
              file, "INCOMPLETE_DOWNLOAD");
}

}  // namespace

struct Weights::Impl {
  std::string wanted;  // dir/stem, for errors
  std::vector<Shard> shards;
  Places places;
  std::set<std::string> unused;
  WeightMap promised;  // by the index, where there is one

  void Index() {
    places = FindPlaces(shards);
    for (const auto& [name, place] : places) unused.insert(name);
  }

  const Shard& OwnerOf(const std::string& name, const SafetensorsEntry** entry) const {
    const auto found = places.find(name);
    if (found == places.end()) {
      const std::string file = shards.size() == 1 ? shards[0].file->path() : wanted;
      const auto promise = promised.find(name);
      const std::string where =
          promise == promised.end() ? "" : ": the index says that it is in " + promise->second;
      throw Bad(file, "tensor '" + name + "' is missing" + where);
    }
    const Shard& shard = shards[found->second.shard];
    *entry = &shard.header.tensors[found->second.entry];
    return shard;
  }

  // Of a tensor that is taken herewith.
  ElementReader Open(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) {
    const SafetensorsEntry* entry = nullptr;
    const Shard& shard = OwnerOf(name, &entry);
    if (at::IntArrayRef(entry->shape) != shape) {
      throw Bad(shard.file->path(), "tensor '" + name + "': wanted shape " + ShapeText(shape) +
                                        ", came " + ShapeText(entry->shape));
    }
    shard.file->CheckUnchanged();
    ElementReader reader(shard.file, *entry, dtype);
    CheckMemory(shard.file->path(), *entry, dtype);
    unused.erase(name);
    return reader;
  }
};

Weights::Weights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Weights::~Weights() = default;
Weights::Weights(Weights&&) noexcept = default;
Weights& Weights::operator=(Weights&&) noexcept = default;

Weights Weights::Open(const ModelFolder& folder, const std::string& stem) {
  auto impl = std::make_unique<Impl>();
  const WeightFiles files = FindWeightFiles(folder, stem);
  impl->wanted = folder.PathOf(stem);
  if (!files.single.empty()) {
    impl->shards.push_back(OpenShard(folder, files.single));
    impl->Index();
    return Weights(std::move(impl));
  }
  const ConfigReader index = ConfigReader::FromFile(folder, files.index);
  impl->promised = ReadWeightMap(index);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : impl->promised) names.insert(shard);
  RequireShards(folder, index, names);
  for (const std::string& name : names) impl->shards.push_back(OpenShard(folder, name));
  impl->Index();
  CompareWeightMap(folder, index, impl->promised, impl->shards, impl->places);
  CompareTotalSize(folder, index, impl->shards);
  return Weights(std::move(impl));
}

bool Weights::Contains(const std::string& name) const { return impl_->places.contains(name); }

at::Tensor Weights::Take(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype,
                         at::Device device) {
  const ElementReader reader = impl_->Open(name, shape, dtype);
  const at::Tensor tensor = at::empty(shape, at::TensorOptions(dtype));
  reader.ReadAll(tensor);
  return device.is_cpu() ? tensor : tensor.to(device);
}

WeightRows Weights::TakeRows(const std::string& name, int64_t rows, int64_t columns,
                             at::ScalarType dtype) {
  const auto read = [reader = impl_->Open(name, {rows, columns}, dtype), columns](
                        int64_t first, int64_t count, void* out) {
    reader.Read(first * columns, count * columns, out);
  };
  return {rows, columns, dtype, read};
}

int64_t Weights::BytesAs(at::ScalarType dtype) const {
  int64_t bytes = 0;
  for (const Shard& shard : impl_->shards) {
    for (const SafetensorsEntry& entry : shard.header.tensors) {
      bytes += c10::multiply_integers(entry.shape) * static_cast<int64_t>(c10::elementSize(dtype));
    }
  }
  return bytes;
}

std::vector<std::string> Weights::Unused() const {
  return {impl_->unused.begin(), impl_->unused.end()};
}

}  // namespace denoised
