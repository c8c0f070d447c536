#include "runtime/loaders/weight_files.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string_view>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/file_kind.h"

namespace denoised {
namespace {

constexpr std::string_view kSingle = ".safetensors";
constexpr std::string_view kIndex = ".index";
constexpr std::string_view kJson = ".json";
constexpr char kTransformersStem[] = "model";

bool IsVariant(std::string_view text) {
  const bool word =
      !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
        return c == '_' || c == '-' || std::isalnum(static_cast<unsigned char>(c));
      });
  return word && text.find("-of-") == std::string_view::npos;  // shards are named by an index
}

// The variant in PREFIX[.VARIANT]SUFFIX; "" for the plain name, nothing for another name.
std::optional<std::string> VariantIn(std::string_view name, std::string_view prefix,
                                     std::string_view suffix) {
  if (!name.starts_with(prefix) || !name.ends_with(suffix)) return std::nullopt;
  if (name.size() < prefix.size() + suffix.size()) return std::nullopt;
  name.remove_prefix(prefix.size());
  name.remove_suffix(suffix.size());
  if (name.empty()) return "";
  if (!name.starts_with('.') || !IsVariant(name.substr(1))) return std::nullopt;
  return std::string(name.substr(1));
}

std::optional<std::string> VariantOfIndex(const std::string& name, const std::string& stem) {
  const std::string single(kSingle), index(kIndex), json(kJson);
  const std::pair<std::string, std::string> spellings[] = {
      {stem + single + index, json}, {stem + single, index + json}, {stem, single + index + json}};
  for (const auto& [prefix, suffix] : spellings) {
    if (auto variant = VariantIn(name, prefix, suffix)) return variant;
  }
  return std::nullopt;
}

using ByVariant = std::map<std::string, WeightFiles>;

ByVariant Collect(const ModelFolder& folder, const std::string& stem) {
  ByVariant found;
  for (const std::string& name : folder.Names()) {
    if (const auto variant = VariantIn(name, stem, kSingle)) {
      found[*variant].single = name;
    } else if (const auto of_index = VariantOfIndex(name, stem)) {
      found[*of_index].index = name;
    }
  }
  return found;
}

std::string JoinVariants(const ByVariant& found) {
  std::string text;
  for (const auto& [variant, files] : found) text += (text.empty() ? "" : ", ") + variant;
  return text;
}

// Where the weights of this folder would be, for errors.
std::string Wanted(const ModelFolder& folder, const std::string& stem) {
  return folder.PathOf(stem + std::string(kSingle));
}

Error Refuse(StatusCode code, const std::string& file, const std::string& message,
             const std::string& reason) {
  return Error(code, file + ": " + message, file, reason);
}

Error NothingThere(const ModelFolder& folder, const std::string& stem) {
  Finding finding = ExplainNoWeights(folder.Names(), stem);
  if (const std::string unfinished = folder.FindUnfinished(); !unfinished.empty()) {
    finding = {"; " + unfinished + " is a download that was not finished: fetch it again",
               "INCOMPLETE_DOWNLOAD"};
  }
  return Refuse(
      StatusCode::kNotFound, Wanted(folder, stem),
      "no such file, nor " + stem + std::string(kSingle) + ".index.json beside it" + finding.text,
      finding.reason);
}

const std::pair<const std::string, WeightFiles>& Choose(const ModelFolder& folder,
                                                        const std::string& stem,
                                                        const ByVariant& found) {
  const std::string& asked = folder.variant();
  if (const auto it = found.find(asked); it != found.end()) return *it;
  if (const auto plain = found.find(""); plain != found.end()) return *plain;
  if (asked.empty() && found.size() == 1) return *found.begin();
  const std::string wish = asked.empty() ? "none is asked for: --variant picks one"
                                         : "'" + asked + "' is not one of them";
  throw Refuse(StatusCode::kInvalidArgument, Wanted(folder, stem),
               "no such file; there are the variants " + JoinVariants(found) + ", and " + wish,
               "VARIANT");
}

// What diffusers and transformers do differently where both are there.
void DropSingle(const ModelFolder& folder, const std::string& stem, WeightFiles& files) {
  const std::string both = folder.PathOf(files.single) + " and " + files.index;
  if (stem == kTransformersStem) {
    throw Refuse(StatusCode::kInvalidArgument, folder.PathOf(files.single),
                 "lies beside " + files.index +
                     ", and transformers would take the first, diffusers the second; remove the "
                     "one that is stale",
                 "AMBIGUOUS_WEIGHTS");
  }
  folder.Warn(both + " are both there: the index is taken, as diffusers does");
  files.single.clear();
}

}  // namespace

WeightFiles FindWeightFiles(const ModelFolder& folder, const std::string& stem) {
  const ByVariant found = Collect(folder, stem);
  if (found.empty()) throw NothingThere(folder, stem);
  // A single file must not stand in for an index that SHA256SUMS lists.
  folder.Has(stem + std::string(kSingle) + std::string(kIndex) + std::string(kJson));
  for (const auto& [variant, files] : found) {
    if (!variant.empty()) folder.NoteVariant(variant, variant == folder.variant());
  }
  auto [variant, files] = Choose(folder, stem, found);
  if (variant != folder.variant()) {
    folder.Warn(folder.PathOf("") + ": " +
                (variant.empty() ? "has no weights of variant " + folder.variant() +
                                       "; the plain ones are taken"
                                 : "has only weights of variant " + variant + ", which are taken"));
  }
  if (!files.single.empty() && !files.index.empty()) DropSingle(folder, stem, files);
  return files;
}

}  // namespace denoised
