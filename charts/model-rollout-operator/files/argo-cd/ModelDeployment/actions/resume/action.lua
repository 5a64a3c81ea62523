-- Sends a merge patch of what differs from the object: kind, name and the annotation of the verb.
-- Without a revision the verb is the same annotation on the ModelDeployment.
local os = require("os")
local st = obj.status or {}
local revision = st.canary
if revision ~= nil then
  obj.kind = "ModelRevision"
  obj.metadata.name = revision
end
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["modelrollout.dev/resume"] = os.date("!%H%M%S") .. os.time()
return {{["operation"] = "patch", ["resource"] = obj}}
