-- Health of a ModelDeployment. Ready, Reconciling and Stalled are never True together.
-- Without the string library, which scripts in argocd-cm do not have.
local st = obj.status or {}
local c = {}
for _, condition in ipairs(st.conditions or {}) do
  condition.message = condition.message or ""
  c[condition.type] = condition
end
local ready, stalled, reconciling = c["Ready"], c["Stalled"], c["Reconciling"]
if st.observedGeneration ~= obj.metadata.generation or ready == nil or stalled == nil or reconciling == nil then
  return {status = "Progressing", message = "the operator has not seen this spec yet"}
end
if ready.status == "True" then
  return {status = "Healthy", message = ready.message}
end
local where = ""
if st.canary ~= nil then
  where = st.canary
  if st.step ~= nil and st.weight ~= nil then
    where = where .. " at step " .. st.step .. ", " .. st.weight .. " %"
  end
  where = where .. ": "
end
if stalled.status == "True" then
  local serves = ""
  if c["Available"] ~= nil and c["Available"].message ~= stalled.message then
    serves = " (" .. c["Available"].message .. ")"
  end
  return {status = "Degraded", message = where .. stalled.reason .. ": " .. stalled.message .. serves}
end
local why = reconciling.reason
local message = where .. why .. ": " .. reconciling.message
-- A person, a time or an autoscaler ends these; whoever waits for health must not wait for them.
if why == "PauseStep" or why == "PausedByUser" or why == "Frozen" or why == "ScaledToZero" then
  return {status = "Suspended", message = message}
end
return {status = "Progressing", message = message}
