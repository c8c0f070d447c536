#include "runtime/loaders/file_kind.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>

#include "backends/error.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/loaders/visible_text.h"

namespace denoised {
namespace {

constexpr uint64_t kHead = 512;  // a pointer of Git LFS is shorter

Error Refuse(const ReadOnlyFile& file, const std::string& what, const std::string& reason) {
  return Error(StatusCode::kInvalidArgument, file.path() + ": " + what, file.path(), reason);
}

bool EndsInAny(const std::string& name, const std::vector<std::string>& endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](const std::string& ending) { return name.ends_with(ending); });
}

// The value of line "key value" in a pointer of Git LFS.
std::string PointerValue(const std::string& head, const std::string& key) {
  const size_t begin = head.find("\n" + key + " ");
  if (begin == std::string::npos) return "?";
  const size_t value = begin + key.size() + 2;
  return VisibleText(head.substr(value, head.find_first_of("\r\n", value) - value));
}

bool IsLfsPointer(const std::string& head) {
  return head.starts_with("version https://git-lfs.github.com/spec/") ||
         head.starts_with("version https://hawser.github.com/spec/");
}

// A page of a web server that was saved in the file's place: no access, not found, please log in.
bool IsWebPage(const std::string& head) {
  std::string text = head.substr(std::min(head.find_first_not_of(" \t\r\n"), head.size()));
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text.starts_with("<!doctype html") || text.starts_with("<html") ||
         text.starts_with("<?xml");
}

// torch.save writes a zip archive, and before version 1.6 wrote a bare pickle. The first bytes of a
// safetensors file are a size and may be any, but not as large as these make it.
bool IsPickle(const std::string& head) {
  uint64_t size = 0;
  if (head.size() < sizeof(size)) return false;
  std::memcpy(&size, head.data(), sizeof(size));
  const bool mark = head.starts_with("PK\x03\x04") || head.starts_with('\x80');
  return mark && size > SafetensorsLimits().max_header_bytes;
}

}  // namespace

void CheckKind(const ReadOnlyFile& file) {
  if (file.size() == 0) {
    throw Refuse(file, "is empty: a download that did not begin or was cut; fetch it again",
                 "INCOMPLETE_DOWNLOAD");
  }
  std::string head(std::min(kHead, file.size()), '\0');
  file.ReadAt(0, head.data(), head.size());
  if (IsLfsPointer(head)) {
    throw Refuse(file,
                 "is a pointer of Git LFS and not the file itself (" + PointerValue(head, "size") +
                     " bytes, " + PointerValue(head, "oid") + "); run `git lfs pull` in its folder",
                 "LFS_POINTER");
  }
  if (IsWebPage(head)) {
    throw Refuse(file,
                 "is a web page and not the file itself: the download was answered with an error "
                 "or a log-in page; fetch it again",
                 "WEB_PAGE");
  }
  if (file.path().ends_with(".safetensors") && IsPickle(head)) {
    throw Refuse(file,
                 "is a PyTorch pickle under the name of safetensors; pickles are not read, "
                 "since they can run code",
                 "PICKLE");
  }
}

std::string UnfinishedDownload(const std::vector<std::string>& names) {
  const auto found = std::find_if(names.begin(), names.end(), [](const std::string& name) {
    return EndsInAny(name, {".incomplete", ".part", ".aria2", ".crdownload", ".download"});
  });
  return found == names.end() ? "" : VisibleText(*found);
}

Finding ExplainNoWeights(const std::vector<std::string>& names, const std::string& stem) {
  const auto first = [&](const auto& matches) -> std::string {
    const auto found = std::find_if(names.begin(), names.end(), matches);
    return found == names.end() ? "" : VisibleText(*found);
  };
  const std::string shard = first([&](const std::string& name) {
    return name.starts_with(stem) && name.find("-of-") != std::string::npos &&
           name.ends_with(".safetensors");
  });
  if (!shard.empty()) {
    return {"; " + shard + " is a shard whose index is missing: a download that is not complete",
            "INCOMPLETE_DOWNLOAD"};
  }
  const std::string other =
      first([](const std::string& name) { return name.ends_with(".safetensors"); });
  if (!other.empty()) return {"; there is " + other + ", under a name that means nothing here", ""};
  const std::string pickle = first([](const std::string& name) {
    return EndsInAny(name, {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json"});
  });
  if (!pickle.empty()) {
    return {"; there is only " + pickle +
                ", a PyTorch pickle, which is not read since it can run code; convert it in Python "
                "with WanPipeline.from_pretrained(DIR).save_pretrained(NEW, "
                "safe_serialization=True)",
            "PICKLE"};
  }
  const std::string foreign = first([](const std::string& name) {
    return EndsInAny(name, {".gguf", ".msgpack", ".h5", ".onnx", ".onnx_data", ".npz"});
  });
  if (!foreign.empty()) {
    return {"; there is only " + foreign + ", and weights are read from safetensors files alone",
            "FOREIGN_FORMAT"};
  }
  return {"; a download that is not complete?", ""};
}

}  // namespace denoised
