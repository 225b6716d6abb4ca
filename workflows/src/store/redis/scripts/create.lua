-- Creates workflows, each by itself: what is wrong with one is said of that one alone.
local made = {}
for i = 1, number() do
  local after = place + NEW_ARGUMENTS
  local ok, is_new = pcall(create)
  made[i] = ok and (is_new and 'new' or 'existing') or { its_own(is_new) }
  place = after
end
settle()
return made
