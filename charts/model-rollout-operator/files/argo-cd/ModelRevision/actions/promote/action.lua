local os = require("os")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["modelrollout.dev/promote"] = ((obj.status or {}).step or "") .. " " .. os.date("!%H%M%S") .. os.time()
return obj
