#include "runtime/store/receipt_row.h"

#include <string>
#include <utility>

#include "runtime/store/json_fields.h"

namespace denoised::stored {
namespace {

AttnBackend BackendFrom(const Json& json) {
  return FromName(json.get<std::string>(), AttnBackend::kNoAttention, AttnBackendName);
}

SelectionSource SourceFrom(const Json& json) {
  return FromName(json.get<std::string>(), SelectionSource::kAutomatic, SelectionSourceName);
}

Json WriteSelection(const Selection& selection) {
  Json refusals = Json::array();
  for (const Refusal& refusal : selection.refusals) {
    refusals.push_back({{"source", SelectionSourceName(refusal.source)},
                        {"backend", AttnBackendName(refusal.backend)},
                        {"reason", refusal.reason}});
  }
  const Wish& granted = selection.granted;
  Json json = {{"source", SelectionSourceName(granted.source)},
               {"backend", AttnBackendName(granted.backend)},
               {"parameters", granted.parameters},
               {"lease_id", granted.lease_id},
               {"refusals", std::move(refusals)}};
  Put(&json, "rule", granted.rule);
  if (granted.strict) json["strict"] = true;
  if (!granted.measured.empty()) json["measured"] = granted.measured;
  return json;
}

Selection ReadSelection(const Json& json) {
  Selection selection;
  selection.granted = {SourceFrom(json.at("source")), BackendFrom(json.at("backend")),
                       json.at("parameters").get<std::string>(),
                       json.at("lease_id").get<std::string>()};
  Take(json, "rule", &selection.granted.rule);
  selection.granted.strict = json.value("strict", false);
  selection.granted.measured = json.value("measured", "");
  for (const Json& refusal : json.at("refusals")) {
    selection.refusals.push_back({SourceFrom(refusal.at("source")),
                                  BackendFrom(refusal.at("backend")),
                                  refusal.at("reason").get<std::string>()});
  }
  return selection;
}

Json WriteEntry(const ReceiptEntry& entry) {
  Json json = {{"role", AttentionRoleName(entry.role)},
               {"first_step", entry.first_step},
               {"last_step", entry.last_step},
               {"ran", AttnBackendName(entry.ran)},
               {"parameters", entry.parameters},
               {"selection", WriteSelection(entry.selection)},
               {"calls", entry.calls}};
  if (entry.asked) json["asked"] = AttnBackendName(*entry.asked);
  if (entry.layers) json["layers"] = {entry.layers->first, entry.layers->last};
  Put(&json, "seconds", entry.seconds);
  return json;
}

ReceiptEntry ReadEntry(const Json& json) {
  ReceiptEntry entry;
  entry.role = FromName(json.at("role").get<std::string>(), AttentionRole::kVae, AttentionRoleName);
  ReadWhole(json, "first_step", &entry.first_step);
  ReadWhole(json, "last_step", &entry.last_step);
  if (const auto asked = json.find("asked"); asked != json.end()) entry.asked = BackendFrom(*asked);
  TakeEnds(json, "layers", &entry.layers);
  entry.ran = BackendFrom(json.at("ran"));
  json.at("parameters").get_to(entry.parameters);
  entry.selection = ReadSelection(json.at("selection"));
  ReadWhole(json, "calls", &entry.calls);
  Take(json, "seconds", &entry.seconds);
  return entry;
}

}  // namespace

Json WriteReceipt(const Receipt& receipt) {
  Json entries = Json::array();
  for (const ReceiptEntry& entry : receipt.entries) entries.push_back(WriteEntry(entry));
  return {{"entries", std::move(entries)},
          {"weights_digest", receipt.weights_digest},
          {"model_digest", receipt.model_digest},
          {"device", receipt.device},
          {"dtype", receipt.dtype},
          {"version", receipt.version},
          {"torch_version", receipt.torch_version},
          {"kernels", receipt.kernels},
          {"linear", receipt.linear},
          {"fingerprint", receipt.fingerprint},
          {"notes", receipt.notes}};
}

Receipt ReadReceipt(const Json& json) {
  Receipt receipt;
  for (const Json& entry : json.at("entries")) receipt.entries.push_back(ReadEntry(entry));
  json.at("weights_digest").get_to(receipt.weights_digest);
  json.at("model_digest").get_to(receipt.model_digest);
  json.at("device").get_to(receipt.device);
  json.at("dtype").get_to(receipt.dtype);
  json.at("version").get_to(receipt.version);
  json.at("torch_version").get_to(receipt.torch_version);
  json.at("kernels").get_to(receipt.kernels);
  json.at("linear").get_to(receipt.linear);
  json.at("fingerprint").get_to(receipt.fingerprint);
  json.at("notes").get_to(receipt.notes);
  return receipt;
}

}  // namespace denoised::stored
