-- Health of a StreamingJob for Argo CD: resource.customizations.health.penstock.dev_StreamingJob in argocd-cm.
local hs = {status = "Progressing", message = "the controller has not looked at it yet"}
if obj.metadata.deletionTimestamp ~= nil then
  hs.message = "it is being deleted"
  return hs
end
if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration == -1 then
  return hs
end
if obj.status.observedGeneration ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "the newest edit was not looked at yet"
  return hs
end
local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end
local ready = found["Ready"]
if found["Stalled"] ~= nil and found["Stalled"].status == "True" then
  hs.status = "Degraded"
  hs.message = found["Stalled"].message
elseif ready ~= nil and ready.status == "True" then
  hs.status = ready.reason == "Suspended" and "Suspended" or "Healthy"
  hs.message = ready.message
elseif ready ~= nil then
  hs.message = ready.message
end
return hs
