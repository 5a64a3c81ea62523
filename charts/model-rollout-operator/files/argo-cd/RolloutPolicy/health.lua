-- Health of a RolloutPolicy: whether the operator could read it.
local st = obj.status or {}
for _, c in ipairs(st.conditions or {}) do
  if c.type == "Accepted" and st.observedGeneration == obj.metadata.generation then
    return {status = c.status == "True" and "Healthy" or "Degraded", message = c.message or ""}
  end
end
return {status = "Progressing", message = "the operator has not read this policy yet"}
