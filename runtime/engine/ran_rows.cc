#include "runtime/engine/ran_rows.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace denoised {
namespace {

using Kernel = std::tuple<AttentionRole, AttnBackend, std::string>;

// Layers of a role. Nothing in it: all of them.
using Layers = std::vector<Interval>;

// A run of steps of a kernel, all with the same layers.
struct Stretch {
  Interval steps;
  Layers layers;
};

// In order, neighbours joined.
Layers Joined(Layers layers) {
  std::ranges::sort(layers, {}, &Interval::first);
  Layers joined;
  for (const Interval& one : layers) {
    if (!joined.empty() && one.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, one.last);
    } else {
      joined.push_back(one);
    }
  }
  return joined;
}

// Where an entry of the role begins, or has ended: between two of these nothing changes.
std::set<int64_t> Cuts(const std::vector<const ReceiptEntry*>& entries) {
  std::set<int64_t> cuts;
  for (const ReceiptEntry* entry : entries) {
    cuts.insert(entry->first_step);
    cuts.insert(entry->last_step + 1);
  }
  return cuts;
}

// What each kernel had of the role at a step.
std::map<Kernel, Layers> At(const std::vector<const ReceiptEntry*>& entries, int64_t step) {
  std::map<Kernel, Layers> at;
  Layers any;
  for (const ReceiptEntry* entry : entries) {
    if (step < entry->first_step || step > entry->last_step) continue;
    Layers& layers = at[{entry->role, entry->ran, entry->parameters}];
    if (!entry->layers) continue;
    layers.push_back(*entry->layers);
    any.push_back(*entry->layers);
  }
  // Every layer runs something: what has as many as there are has all.
  any = Joined(std::move(any));
  for (auto& [kernel, layers] : at) {
    layers = Joined(std::move(layers));
    if (layers == any) layers.clear();
  }
  return at;
}

void Append(const Stretch& next, std::vector<Stretch>* stretches) {
  const bool continues = !stretches->empty() &&
                         stretches->back().steps.last + 1 == next.steps.first &&
                         stretches->back().layers == next.layers;
  if (!continues) return stretches->push_back(next);
  stretches->back().steps.last = next.steps.last;
}

void AddRole(const std::vector<const ReceiptEntry*>& entries,
             std::map<Kernel, std::vector<Stretch>>* rows) {
  const std::set<int64_t> cuts = Cuts(entries);
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    for (const auto& [kernel, layers] : At(entries, *cut)) {
      Append({{*cut, *std::next(cut) - 1}, layers}, &(*rows)[kernel]);
    }
  }
}

std::string TextOf(const Stretch& stretch) {
  std::string text =
      ' ' + std::to_string(stretch.steps.first) + '-' + std::to_string(stretch.steps.last);
  if (stretch.layers.empty()) return text;
  text += "(layers";
  for (const Interval& layers : stretch.layers) text += ' ' + ToText(layers);
  return text + ')';
}

}  // namespace

std::vector<std::string> RanRows(const std::vector<ReceiptEntry>& entries) {
  std::map<AttentionRole, std::vector<const ReceiptEntry*>> roles;
  for (const ReceiptEntry& entry : entries) roles[entry.role].push_back(&entry);
  std::map<Kernel, std::vector<Stretch>> rows;
  for (const auto& [role, own] : roles) AddRole(own, &rows);
  std::vector<std::string> lines;
  for (const auto& [kernel, stretches] : rows) {
    const auto& [role, ran, parameters] = kernel;
    std::string line =
        std::string(AttentionRoleName(role)) + ' ' + std::string(AttnBackendName(ran));
    for (const Stretch& stretch : stretches) line += TextOf(stretch);
    lines.push_back(line + ' ' + parameters);
  }
  return lines;
}

}  // namespace denoised
