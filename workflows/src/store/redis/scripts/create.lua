-- Creates workflows, each by itself: what is wrong with one is said of that one alone.
-- ARGV: how many, their ids, and of each what `create` reads.
local made = {}
local how_many = number()
load_heads(ARGV, place + 1, place + how_many)
local ids = place
place = place + how_many
if how_many > 0 then remember() end
for i = 1, how_many do
  local after = place + NEW_ARGUMENTS
  local ok, is_new = pcall(create, ARGV[ids + i])
  made[i] = ok and (is_new and 'new' or 'existing') or { its_own(is_new) }
  place = after
end
settle()
return made
