-- Paths of a release that lead to shared/, as a list; null as long as nobody said.
ALTER TABLE deploy_settings ADD COLUMN shared_paths JSONB;
ALTER TABLE deploy_templates ADD COLUMN shared_paths JSONB;
